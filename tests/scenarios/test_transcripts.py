from pathlib import Path

import pytest

from tests.scenarios.transcript import rerun

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))


def test_there_are_transcripts() -> None:
    assert len(TRANSCRIPTS) >= 12


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_the_cores_do_what_the_transcript_says(path: Path, request: pytest.FixtureRequest) -> None:
    written = path.read_text("utf-8")
    rerun_now = rerun(written)
    if request.config.getoption("--rewrite"):
        path.write_text(rerun_now, "utf-8")
    else:
        assert rerun_now == written, (
            "if the new behaviour is right: pytest --rewrite, and read the diff"
        )
