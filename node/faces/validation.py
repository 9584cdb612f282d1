"""Whether a node would start with a configuration that lies elsewhere: pure."""

from node.gateway.config_models import ConfigFaultInfo, Validated, ValidateRequest
from node.settings.config import Given, read_config
from node.settings.config_text import ConfigFaultsError


def validated(request: ValidateRequest, name: str) -> Validated:
    """Every fault of the file alone: flags, environment and paths belong to the machine that starts.

    `name` stands in for what a node without one takes from its machine.
    """
    given = Given(flags={}, environment={}, file=request.file, text=request.text)
    try:
        read_config(given, {"home": "/", "name": name})
    except ConfigFaultsError as error:
        faults = [
            ConfigFaultInfo(file=f.source, line=f.line, key=f.key, what=f.what, todo=f.todo)
            for f in error.faults
        ]
        return Validated(file=request.file, ok=False, faults=faults)
    return Validated(file=request.file, ok=True, faults=[])
