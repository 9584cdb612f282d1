"""Ports of a node, and addresses as people write them."""

PORT_DEFAULT = 7440
"""Control; bulk is the next one, join the one after."""
API_PORT_DEFAULT = 7450
API_DEFAULT = f"127.0.0.1:{API_PORT_DEFAULT}"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


def split_endpoint(text: str, default_port: int | None = None) -> tuple[str, int]:
    """Host and port of `host:port`, `[v6]:port` or, with a default port, `host`.

    Raises `ValueError` with a sentence for a person.
    """
    bare = text.removeprefix("http://").rstrip("/")
    if bare.startswith("["):
        host, bracket, rest = bare[1:].partition("]")
        port_text = (
            rest[1:] if bracket and rest.startswith(":") else "" if bracket and not rest else None
        )
    elif bare.count(":") > 1:
        host, port_text = bare, ""
    else:
        host, _, port_text = bare.partition(":")
    if port_text is None or not host or any(sign in host for sign in " /@#?"):
        raise ValueError(f"{text!r} is no address of the form host:port")
    if port_text == "":
        if default_port is None:
            raise ValueError(f"{text!r} names no port; write it as host:port")
        return host, default_port
    if not (port_text.isascii() and port_text.isdigit()) or int(port_text) > 65_535:
        raise ValueError(f"{port_text!r} is no port: 0 to 65535")
    return host, int(port_text)
