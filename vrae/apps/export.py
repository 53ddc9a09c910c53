"""`vrae export`: a model as ONNX graphs, for programs that have no torch.

DIR/NAME.onnx                                           what `vrae.apps.graphs` cuts the model into, weights inside
DIR/tokenizer.model                                     SentencePiece
DIR/config.json                                         ids, sizes, inputs and outputs, limits, the cleaning of text
DIR/example.py                                          writes texts with numpy, onnxruntime and sentencepiece alone
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vrae import __version__
from vrae.apps.graphs import Array, Graph, graphs
from vrae.config import ModelConfig
from vrae.corpus.tokenizer import BOS, EOS, PAD, UNK
from vrae.errors import ModelError, UserError
from vrae.files import to_json, write_folder
from vrae.generation.text_model import MAX_CHARACTERS, TextModel
from vrae.model.folder import CONFIG, TOKENIZER

FORMAT = "vrae-onnx-1"
EXAMPLE = "example.py"
MAX_TOKENS = 128  # of a text, as in `vrae.config.GREEDY`
_LARGEST = 2**31 - 2**20  # bytes of weights: a protobuf, which a graph is stored as, has less than 2 GiB


def export_onnx(model: TextModel, out: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Writes the model into folder `out` as ONNX graphs, with all that is needed to use them; all or nothing.

    Args:
        model: on a CPU.
        out: a folder that is not there, or is empty.
        overwrite: replace an earlier export.

    Returns:
        what config.json holds.

    Raises:
        ModelError: the graphs could not stand for such a model.
        UserError: `out` holds something else or cannot be written, or the packages for ONNX are missing.
    """
    out = Path(out)
    _check_model(model.model.config)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.model.parameters())
    if size > _LARGEST:
        raise ModelError(f"the model has {size:,} bytes of weights, and an ONNX file holds at most {_LARGEST:,}")
    try:
        _check_out(out, overwrite)
        cut = graphs(model.model)
        info = _describe(model, cut)
        files = {f"{name}.onnx": _onnx(graph) for name, graph in cut.items()}
        example = Path(__file__).with_name("onnx_replies.py" if model.model.config.context_turns else "onnx_sentences.py")
        rest = {TOKENIZER: model.tokenizer.model, CONFIG: to_json(info), EXAMPLE: example.read_bytes()}
        write_folder(out, {**files, **rest})
    except OSError as error:
        raise UserError(f"--out {out}: cannot write: {error.strerror or error}") from None
    return info


def _check_model(config: ModelConfig) -> None:
    """Raises ModelError where a mean and a log-variance would not describe the posterior, or nothing could be chosen."""
    if config.flow_steps and config.latent_size:
        raise ModelError(
            "cannot be exported: its posterior has a flow, and the graphs give one mean and variance. Export a model with "
            "model.flow_steps 0"
        )
    if not config.latent_size and not config.context_turns:
        raise ModelError("cannot be exported: a language model (latent_size 0, context_turns 0) has nothing to be given")


def _check_out(out: Path, overwrite: bool) -> None:
    """Raises UserError where something stands in the way."""
    ours = (out / EXAMPLE).is_file() and (out / "step.onnx").is_file()  # anything but an export is never replaced
    if out.exists() and not (overwrite and ours) and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out}: exists already. Choose another folder, or replace an export by --overwrite")


def _describe(model: TextModel, cut: dict[str, Graph]) -> dict[str, Any]:
    """config.json."""
    config = model.model.config
    return {
        "format": FORMAT,
        "vrae": __version__,
        "context_turns": config.context_turns,
        "latent_size": config.latent_size,
        "vocab_size": config.vocab_size,
        "ids": {"pad": PAD, "unk": UNK, "bos": BOS, "eos": EOS},
        "never_written": [PAD, UNK, BOS],
        "max_tokens": MAX_TOKENS,
        "max_turn_tokens": model.longest_turn,
        "max_characters": MAX_CHARACTERS,
        "cleaning": {"substitutions": model.cleaner.substitutions(), "lowercase": model.cleaner.config.lowercase},
        "graphs": {
            name: {"file": f"{name}.onnx", "inputs": _arrays(graph.inputs), "outputs": _arrays(graph.outputs)}
            for name, graph in cut.items()
        },
    }


def _arrays(arrays: dict[str, Array]) -> dict[str, Any]:
    return {name: {"dtype": array.dtype, "shape": list(array.shape)} for name, array in arrays.items()}


def _onnx(graph: Graph) -> bytes:
    """The graph as a file. Without what the exporter notes beside each node: sizes of our files and places in them."""
    try:
        import onnx
        import onnxruntime  # noqa: F401  the example needs it
        import onnxscript  # noqa: F401  torch does
    except ImportError:
        raise UserError("ONNX files need onnx, onnxruntime and onnxscript. Run: pip install 'vrae[export]'") from None
    sizes: dict[str | int, Any] = {name: torch.export.Dim(name) for name in ("batch", "turns", "tokens")}
    shapes = [{i: sizes[size] for i, size in enumerate(a.shape) if size in sizes} for a in graph.inputs.values()]
    with _quiet():
        program = torch.onnx.export(
            graph.module.eval(),
            tuple(map(_sample, graph.inputs.values())),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=(tuple(shapes),) if shapes else None,
            dynamo=True,
            custom_translation_table={torch.ops.vrae.gru_layer.default: onnx_gru},
            external_data=False,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    for value, array in zip(proto.graph.input, graph.inputs.values(), strict=True):
        found = tuple(size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim)
        if found != array.shape:  # the exporter falls back on the sizes of its sample
            raise UserError(
                f"torch {torch.__version__} exports {value.name} with shape {found}, not {array.shape}: use torch 2.13"
            )
    for node in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del node.metadata_props[:]
    onnx.checker.check_model(proto)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def onnx_gru(inputs: Any, w_in: Any, w_state: Any, bias: Any, state: Any) -> Any:
    """`graphs.gru_layer` as ONNX's operator."""
    from onnxscript import opset18

    op: Any = opset18
    states, _ = op.GRU(inputs, w_in, w_state, bias, None, state, hidden_size=state.shape[-1], linear_before_reset=1)
    return op.Squeeze(states, op.Constant(value_ints=[1]))  # the axis of directions


def _sample(array: Array) -> torch.Tensor:
    """An array of such a shape to trace the graph with: ids and lengths of 2."""
    dims = [{"batch": 2, "turns": 3, "tokens": 4}[size] if isinstance(size, str) else size for size in array.shape]
    return torch.full(dims, 2) if array.dtype == "int64" else torch.zeros(dims)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what the exporter says of its own insides: deprecations in torch, packages that it looked for."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
