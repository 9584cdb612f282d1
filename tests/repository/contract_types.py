"""Our own kinds of import contracts, for what import-linter's cannot say.

Its built-in kinds take lists of modules; ours go by the name of a file, so that a file which is
added tomorrow is covered without a word here.  `[tool.importlinter]` in pyproject.toml uses them.
"""

from collections.abc import Iterable, Iterator

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

OURS = ("mesh", "ledger", "node")
ADAPTER_SUFFIXES = (
    *("_zmq", "_mdns", "_files", "_sqlite", "_ffmpeg", "_http"),
    *("_av", "_posix", "_windows", "_vulkan", "_wakepy", "_nvml"),
)

LOOP = frozenset({"asyncio", "concurrent", "pathlib", "structlog", "logging", "secrets"})
"""What a service on the event loop may use beyond pure code: the loop, an executor it is given, a
logger, paths as values, and random draws, because services are the ones that propose."""
WORLD = LOOP | {
    *("os", "pathlib", "shutil", "tempfile", "glob", "mmap", "fcntl", "fileinput", "sqlite3"),
    *("socket", "socketserver", "select", "selectors", "ssl", "http", "smtplib", "ftplib"),
    *("subprocess", "multiprocessing", "threading", "concurrent", "queue", "sched", "signal"),
    *("time", "uuid", "random", "secrets", "platform", "getpass", "webbrowser"),
    *("zmq", "zeroconf", "ifaddr", "apsw", "av", "vulkan", "imageio_ffmpeg", "psutil"),
    *("httpx", "fastapi", "starlette", "uvicorn", "uvloop", "platformdirs", "rich", "click"),
}
"""What touches the world, reads a clock or draws at random: not for pure files."""


def is_adapter(module: str) -> bool:
    """Whether the name of a module ends like an adapter's."""
    return module.endswith(ADAPTER_SUFFIXES)


def _names(field: object) -> list[str]:
    """The value of a list field: import-linter replaces the declaration by it."""
    assert isinstance(field, list)
    return [str(name) for name in field]


def _below(module: str, roots: Iterable[str]) -> bool:
    return any(module == root or module.startswith(f"{root}.") for root in roots)


def _ours(graph: ImportGraph) -> list[str]:
    return sorted(module for module in graph.modules if _below(module, OURS))


def _check(graph: ImportGraph, faults: Iterator[tuple[str, str, str]]) -> ContractCheck:
    """A verdict from (importer, imported, reason)."""
    lines: list[str] = []
    for importer, imported, reason in faults:
        details = graph.get_import_details(importer=importer, imported=imported)
        number = details[0]["line_number"] if details else 0
        lines.append(f"{importer}:{number} imports {imported}: {reason}")
    return ContractCheck(kept=not lines, metadata={"lines": lines})


def _render(check: ContractCheck) -> None:
    for line in check.metadata["lines"]:
        output.print_error(line, bold=False)
    output.new_line()


class PurityContract(Contract):
    """A file without an adapter's suffix is pure, unless it is named in one of the lists.

    Pure files import no module that touches the world, and none of ours that does.  Services run
    on the event loop and may use it and a logger, nothing else of the world.  `pure` names
    exceptions below a package that `world` names, `exempt` single imports.
    """

    type_name = "purity"
    world = fields.ListField(subfield=fields.StringField())
    services = fields.ListField(subfield=fields.StringField())
    pure = fields.ListField(subfield=fields.StringField(), required=False, default=[])
    exempt = fields.ListField(subfield=fields.StringField(), required=False, default=[])

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Judges every direct import of a pure file: what it imports of ours is judged in its turn."""
        return _check(graph, self._faults(graph))

    def _faults(self, graph: ImportGraph) -> Iterator[tuple[str, str, str]]:
        world, services, pure = map(_names, (self.world, self.services, self.pure))
        exempt = [tuple(text.split(" -> ")) for text in _names(self.exempt)]
        for gone in sorted({*world, *services, *pure} - graph.modules):
            raise ValueError(f"{gone} is in a list of the purity contract and does not exist")

        def touches(module: str) -> bool:
            return is_adapter(module) or (_below(module, world) and module not in pure)

        for module in _ours(graph):
            if touches(module):
                continue
            service = module in services
            spared = {pair[1] for pair in exempt if pair[0] == module}
            banned = WORLD - LOOP if service else WORLD
            for imported in sorted(graph.find_modules_directly_imported_by(module) - spared):
                if imported.partition(".")[0] in banned:
                    yield module, imported, "does not touch the world (pure file or service)"
                elif not service and (imported in services or touches(imported)):
                    yield module, imported, "pure files import pure files"

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Prints what broke it."""
        _render(check)


class AdaptersContract(Contract):
    """Only the composition roots know adapters; one adapter may span files of one suffix in one package."""

    type_name = "adapters"
    roots = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Judges every import of an adapter."""
        return _check(graph, self._faults(graph))

    def _faults(self, graph: ImportGraph) -> Iterator[tuple[str, str, str]]:
        roots = _names(self.roots)
        for adapter in filter(is_adapter, _ours(graph)):
            for importer in sorted(graph.find_modules_that_directly_import(adapter)):
                if _below(importer, roots) or _kin(importer, adapter):
                    continue
                yield importer, adapter, "only composition roots know adapters"

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Prints what broke it."""
        _render(check)


def _kin(one: str, other: str) -> bool:
    """Whether two modules are files of one adapter: same package, same suffix."""
    package, _, name = one.rpartition(".")
    return (
        package == other.rpartition(".")[0] and name.rpartition("_")[2] == other.rpartition("_")[2]
    )


class OnlyContract(Contract):
    """Modules below `importers` import of `package` nothing but `allowed`; `exempt` lists single imports."""

    type_name = "only"
    importers = fields.ListField(subfield=fields.StringField())
    package = fields.StringField()
    allowed = fields.ListField(subfield=fields.StringField())
    exempt = fields.ListField(subfield=fields.StringField(), required=False, default=[])

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Judges every direct import."""
        return _check(graph, self._faults(graph))

    def _faults(self, graph: ImportGraph) -> Iterator[tuple[str, str, str]]:
        importers, package = _names(self.importers), str(self.package)
        allowed = [*_names(self.allowed), *importers]
        exempt = {tuple(text.split(" -> ")) for text in _names(self.exempt)}
        for module in _ours(graph):
            if not _below(module, importers):
                continue
            for imported in sorted(graph.find_modules_directly_imported_by(module)):
                outside = _below(imported, [package]) and not _below(imported, allowed)
                if outside and imported != package and (module, imported) not in exempt:
                    yield module, imported, f"of {package} only {', '.join(allowed)}"

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Prints what broke it."""
        _render(check)
