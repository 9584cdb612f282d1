"""How a film and its plan read for a person."""

from node.cli.media_text import plan_lines, probe_lines

PROBE = {
    "container": "matroska,webm",
    "duration_ms": 20_020,
    "frames": 600,
    "streams": [
        {
            "index": 0,
            "kind": "video",
            "codec": "h264",
            "width": 176,
            "height": 144,
            "pixel_format": "yuv420p",
            "frame_rate": [30_000, 1_001],
            "base_rate": [30_000, 1_001],
            "colour_transfer": "smpte2084",
            "rotation": -90,
            "language": "und",
        },
        {
            "index": 1,
            "kind": "audio",
            "codec": "aac",
            "sample_rate": 48_000,
            "channels": 2,
            "channel_layout": "stereo",
            "language": "deu",
            "title": "Kommentar",
        },
        {"index": 2, "kind": "data", "codec": ""},
    ],
}


def test_what_a_film_holds() -> None:
    assert probe_lines(PROBE) == [
        "matroska,webm, 20.0 s, 600 frames",
        "0 video: h264, 176x144 yuv420p, 29.97 fps, smpte2084, turned by -90°",
        "1 audio: aac, 48000 Hz, stereo, deu, “Kommentar”",
        "2 data: unknown codec",
    ]


def test_a_varying_rate_is_said_and_an_unknown_one_is_left_out() -> None:
    video = {"index": 0, "kind": "video", "codec": "vp9", "width": 2, "height": 2}
    varies = {**video, "frame_rate": [25, 1], "base_rate": [50, 1]}
    lines = probe_lines({"container": "webm", "streams": [varies, video]})
    assert lines == ["webm", "0 video: vp9, 2x2, 25 fps (varies)", "0 video: vp9, 2x2"]


def test_what_a_film_becomes() -> None:
    plan = {
        "container": "mp4",
        "width": 128,
        "height": 72,
        "pixel_format": "yuv420p",
        "streams": [
            {
                "source": 0,
                "kind": "video",
                "encoder": "libx264",
                "options": [["crf", "22"], ["preset", "fast"]],
            },
            {"source": 2, "kind": "audio", "encoder": "copy"},
        ],
        "filters": [{"name": "scale"}, {"name": "format"}],
        "notes": ["subtitle 3 has no place in mp4"],
    }
    assert plan_lines(plan) == [
        "mp4",
        "0 video from 0: libx264 (crf 22, preset fast), 128x72 yuv420p",
        "1 audio from 2: copied",
        "filters: scale, format",
        "note: subtitle 3 has no place in mp4",
    ]


def test_documents_of_another_version_are_shown_as_far_as_they_go() -> None:
    assert probe_lines({}) == [""]
    assert plan_lines({}) == [""]
