"""Open what a person wants to convert: a directory or a file, whatever its name, by what is in it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from builder.compile.import_.checkpoint import AGAIN, Files, Source, Tensor
from builder.compile.import_.gguf.header import looks_like_gguf
from builder.compile.import_.gguf.source import open_gguf
from builder.compile.import_.onnx import looks_like_onnx, read_onnx
from builder.compile.import_.pytorch import looks_like_pytorch, read_pytorch
from builder.compile.import_.safetensors import looks_like_safetensors, read_safetensors
from builder.compile.mlc import CONFIG, read_json
from builder.errors import FormatError

CONFIG_FILE = "config.json"
ONNX_FOLDER = "onnx"  # where exports lie on Hugging Face, below the checkpoint's other files
HEAD = 512  # bytes that tell the formats apart
MAX_ENTRIES = 10_000  # of a directory
KNOWN = "Hob reads safetensors, PyTorch, GGUF and ONNX files."

# Where a directory has several formats, the first one is taken.
FORMATS: Mapping[str, Callable[[bytes], bool]] = {
    "safetensors": looks_like_safetensors,
    "PyTorch": looks_like_pytorch,
    "GGUF": looks_like_gguf,
    "ONNX": looks_like_onnx,
}
READERS: Mapping[str, Callable[[Files, Path], dict[str, Tensor]]] = {
    "safetensors": read_safetensors,
    "PyTorch": read_pytorch,
    "ONNX": read_onnx,
}
# What the tools call the weights. Others may lie beside them: of an optimiser, or other forms of the same.
USUAL = ("model.safetensors", "pytorch_model.bin", "model.onnx", "decoder_model.onnx")


def open_source(path: Path) -> Source:
    """Open the checkpoint at `path`; reads headers, no weights.

    Args:
        path: a directory with config.json and weights; a file of weights with config.json beside it; a GGUF
            file, which needs nothing else, or the directory it is in.

    Raises:
        FormatError: nothing there that can be converted, or a file is damaged; names it.
        UnsupportedError: a format or variant that Hob does not read.
    """
    if not path.exists():
        raise FormatError(f"{path} does not exist", hint="Give a model's directory or file.")
    files = Files()
    try:
        if not path.is_dir():
            return _open_files(files, path, [path])
        return _open_directory(files, path)
    except BaseException:
        files.close()
        raise


def sniff(file: Path) -> str | None:
    """The format of a file by its first bytes; None if it is none of ours.

    Raises:
        FormatError: the file cannot be read.
    """
    files = Files()
    try:
        head = files.read(file, 0, min(files.size(file), HEAD), "its beginning")
    finally:
        files.close()
    return next((name for name, looks_like in FORMATS.items() if looks_like(head)), None)


def _open_directory(files: Files, directory: Path) -> Source:
    """What an index lists, the file of the usual name, or whatever is there."""
    for name in USUAL:
        if (index := directory / f"{name}.index.json").is_file():
            return _open_index(files, directory, index)
        if (file := directory / name).is_file():
            return _open_files(files, directory, [file])
    for found in _by_format(directory).values():
        return _open_files(files, directory, found)
    if directory.name != ONNX_FOLDER and (directory / ONNX_FOLDER).is_dir():
        return _open_directory(files, directory / ONNX_FOLDER)
    if (directory / CONFIG).is_file():
        raise FormatError(
            f"{directory} is an MLC directory already", hint="Add it as it is: hob model add DIRECTORY."
        )
    raise FormatError(f"{directory} has no weights, such as model.safetensors or a GGUF file", hint=KNOWN)


def _by_format(directory: Path) -> dict[str, list[Path]]:
    """The files of weights in a directory by format, in the order of preference."""
    try:
        entries = sorted(file for file in directory.iterdir() if not file.name.startswith("."))
    except OSError as error:
        raise FormatError(f"{directory} cannot be read: {error.strerror}") from error
    if len(entries) > MAX_ENTRIES:
        raise FormatError(f"{directory} has {len(entries)} entries", hint="Give the model's own directory.")
    formats = [(file, sniff(file)) for file in entries if file.is_file()]
    found = {name: [file for file, kind in formats if kind == name] for name in FORMATS}
    return {name: files for name, files in found.items() if files}


def _open_files(files: Files, path: Path, weights: Sequence[Path]) -> Source:
    """A checkpoint in files of one format that no index describes; tensors in the order of their names."""
    kind = sniff(weights[0])
    if kind is None:
        raise FormatError(f"{weights[0]} is truncated or in no format that is read", hint=KNOWN)
    if kind == "GGUF":
        return open_gguf(files, path, weights)
    tensors: dict[str, Tensor] = {}
    for file in weights:
        for name, tensor in READERS[kind](files, file).items():
            if name in tensors:
                raise FormatError(
                    f"{file}: {name} is in {tensors[name].file} too", hint="Give one of the files."
                )
            tensors[name] = tensor
    return _with_config(files, path, weights[0].parent, kind, dict(sorted(tensors.items())))


def _open_index(files: Files, directory: Path, index: Path) -> Source:
    """A checkpoint in several files; tensors in the order of the index, grouped by file as MLC-LLM does."""
    headers: dict[str, dict[str, Tensor]] = {}
    kinds: set[str] = set()
    grouped: dict[str, list[str]] = {}
    for name, file_name in _weight_map(index):
        if file_name not in headers:
            file = directory / file_name
            kind = sniff(file)
            if kind is None or kind not in READERS:
                raise FormatError(f"{file} is truncated or in no format that is read", hint=KNOWN)
            kinds.add(kind)
            headers[file_name] = READERS[kind](files, file)
        if name not in headers[file_name]:
            raise FormatError(f"{directory / file_name} has no tensor {name!r}", hint=AGAIN)
        grouped.setdefault(file_name, []).append(name)
    tensors = {name: headers[file][name] for file, names in grouped.items() for name in names}
    return _with_config(files, directory, directory, "/".join(sorted(kinds)), tensors)


def _weight_map(index: Path) -> Iterator[tuple[str, str]]:
    """Names of tensors, and of the files that they are in."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{index}: weight_map is missing", hint=AGAIN)
    for name, file in weight_map.items():
        # A plain file name: anything else could point outside the directory.
        if (
            not isinstance(file, str)
            or not file.isprintable()
            or file in ("", "..")
            or Path(file).name != file
        ):
            raise FormatError(f"{index}: {name!r}: {file!r} is not a plain file name", hint=AGAIN)
        yield name, file


def _with_config(
    files: Files, path: Path, directory: Path, kind: str, tensors: Mapping[str, Tensor]
) -> Source:
    """The source, with the config.json that lies beside its weights."""
    config_file = directory / CONFIG_FILE
    if not config_file.is_file() and directory.name == ONNX_FOLDER:
        config_file = directory.parent / CONFIG_FILE
    return Source(path, kind, config_file, read_json(config_file), files, tensors)
