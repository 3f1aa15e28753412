"""Hold what a model declares against what a checkpoint has."""

from collections.abc import Iterable

from builder.compile.families.parameters import Parameter
from builder.compile.import_.checkpoint import Source
from builder.errors import FormatError, UnsupportedError

# Old checkpoints carry tables that follow from the configuration; tied ones may carry a copy.
SUPERFLUOUS = ("rotary_emb.inv_freq", "lm_head.weight")
# Fields of config.json that some tensor is at least as large as.
DIMENSIONS = ("hidden_size", "intermediate_size", "vocab_size", "head_dim", "num_attention_heads")


def check_dimensions(source: Source) -> None:
    """Refuse a configuration of another order of magnitude than the tensors.

    Whoever declares its parameters makes an object for each layer and computes tables over each head; this
    keeps both bounded.

    Raises:
        FormatError: names the field.
    """
    largest = max((dim for tensor in source.tensors.values() for dim in tensor.shape), default=0)
    text = source.config.get("text_config")
    for config in (source.config, text if isinstance(text, dict) else {}):
        for field, limit in (("num_hidden_layers", len(source.tensors)), *((d, largest) for d in DIMENSIONS)):
            value = config.get(field)
            if isinstance(value, int) and value > limit:
                raise FormatError(
                    f"{source.config_file}: {field}: {value} is more than the tensors of {source.path} have",
                    hint=f"{source.config_file.name} belongs to another checkpoint.",
                )


def in_checkpoint_order(
    parameters: Iterable[Parameter], source: Source, unused: tuple[str, ...] = ()
) -> list[Parameter]:
    """Return the parameters in the order in which the checkpoint first has a part of each, as MLC-LLM does.

    Args:
        unused: how names of tensors begin that the model has no use for, and leaves aside.

    Raises:
        FormatError: a tensor is missing or has another shape than the configuration says.
        UnsupportedError: the checkpoint has a tensor that the model would ignore.
    """
    owner: dict[str, Parameter] = {}
    for parameter in parameters:
        for name, shape in parameter.sources:
            owner[name] = parameter
            if name not in source.tensors:
                raise FormatError(
                    f"{source.path}: tensor {name} is missing",
                    hint=f"The checkpoint is incomplete, or {source.config_file.name} belongs to another.",
                )
            if (found := source.tensors[name].shape) != shape:
                raise FormatError(
                    f"{source.tensors[name].file}: {name} has shape {list(found)}, not {list(shape)}",
                    hint=f"{source.config_file.name} belongs to another checkpoint.",
                )
    for name, tensor in source.tensors.items():
        if name not in owner and not name.endswith(SUPERFLUOUS) and not name.startswith(unused):
            raise UnsupportedError(
                f"{tensor.file}: tensor {name} has no place in a {source.config.get('model_type')} model"
            )
    return list(dict.fromkeys(owner[name] for name in source.tensors if name in owner))
