"""The encoder as a graph that needs neither twinview nor its library: ONNX and TorchScript."""
from __future__ import annotations

import contextlib
import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from twinview.analysis.exports.common import Checked, Exported, Outputs, Trial, compared, installed, other_size, plain_names, trials
from twinview.analysis.targets import Target
from twinview.errors import CheckpointError
from twinview.files import write_atomic
from twinview.values import Size

NEAR = 1e-3  # of the largest value: a graph that is further off at another size is of one size


def to_onnx(target: Target, out: Path, size: Size) -> Exported:
    """An .onnx file with inputs `images` [B, C, H, W], outputs `pooled` and `cells`; any batch, and any size that it agrees at.

    Raises CheckpointError where a package is missing, or the encoder cannot be traced.
    """
    for package in ("onnx", "onnxscript"):
        if not installed(package):
            raise CheckpointError("to=onnx: wants the packages onnx and onnxscript. Install twinview[onnx].")
    sizes = [size, other_size(size, _stride(target))]
    shown, said = trials(target, sizes)
    names = plain_names(shown[0])
    model = Outputs(target.encoder, names).eval()
    notes: tuple[str, ...] = ()
    try:
        _onnx(model, shown[1], names, out, any_size=True)  # whose maps have no side of 1 cell: torch.export takes that for fixed
        checked = _run_onnx(out, names, shown, said)
        if checked.by and checked.difference > NEAR * checked.scale:
            raise ValueError("differs at another size")
    except CheckpointError:
        raise
    except Exception as e:  # the exporter, onnx and onnxruntime each raise their own
        notes = (f"of {size[0]}x{size[1]} alone: with other sizes it {_line(e)}",)
        shown, said = trials(target, [size])
        try:
            _onnx(model, shown[0], names, out, any_size=False)
        except Exception as error:
            raise CheckpointError(f"to=onnx: {target.use} cannot be traced: {_line(error)}. Write to=safetensors.") from None
        checked = _run_onnx(out, names, shown, said)
    run = f'{", ".join(names)} = session.run(None, {{"images": images}})'
    code = ("import onnxruntime", f"session = onnxruntime.InferenceSession({str(out)!r})", run)
    return Exported(paths=(out,), code=code, checked=checked, notes=notes)


def _onnx(model: Outputs, trial: Trial, names: tuple[str, ...], out: Path, *, any_size: bool) -> None:
    auto = torch.export.Dim.AUTO
    shapes = {"images": {0: auto, **({2: auto, 3: auto} if any_size else {})}}
    with _quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            model, (trial.images,), dynamo=True, input_names=["images"], output_names=list(names), dynamic_shapes=shapes, verbose=False,
        )
        with write_atomic(out) as file:
            file.write(program.model_proto.SerializeToString())


def _run_onnx(out: Path, names: tuple[str, ...], shown: list[Trial], said: str) -> Checked:
    by = installed("onnxruntime")
    if not by:
        return Checked("", float("nan"), 0.0, "not run: onnxruntime is not installed")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    worst, scale = compared(shown, names, lambda images: session.run(list(names), {"images": images.numpy()}))
    return Checked(by, worst, scale, said)


def to_torchscript(target: Target, out: Path, size: Size) -> Exported:
    """A .pt file that `torch.jit.load` reads, images -> (pooled, cells); of any size that it agrees at."""
    sizes = [size, other_size(size, _stride(target))]
    shown, said = trials(target, sizes)
    names = plain_names(shown[0])
    with _quiet(), torch.no_grad():
        try:
            traced = torch.jit.trace(Outputs(target.encoder, names).eval(), (shown[0].images[:2],), check_trace=False)  # type: ignore[no-untyped-call]
        except Exception as e:  # whatever tracing raises
            raise CheckpointError(f"to=torchscript: {target.use} cannot be traced: {_line(e)}. Write to=safetensors.") from None
        with write_atomic(out) as file:
            torch.jit.save(traced, file)
        loaded = torch.jit.load(str(out))  # type: ignore[no-untyped-call]
        notes: tuple[str, ...] = ()
        try:
            worst, scale = compared(shown, names, loaded)
            if worst > NEAR * scale:
                raise ValueError("differs")
        except Exception as e:  # of another size
            notes = (f"of {size[0]}x{size[1]} alone: with other sizes it {_line(e)}",)
            shown, said = trials(target, [size])
            worst, scale = compared(shown, names, loaded)
    code = ("import torch", f"model = torch.jit.load({str(out)!r})", f"{', '.join(names)} = model(images)")
    return Exported(paths=(out,), code=code, checked=Checked(f"torch {torch.__version__}", worst, scale, said), notes=notes)


def _stride(target: Target) -> int:
    spec: Any = target.encoder.spec
    return int(max([spec.cells.stride, *(level.stride for level in spec.levels.values())]))


def _line(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).strip().rstrip(".")[:160]


@contextlib.contextmanager
def _quiet() -> Any:
    """The exporters speak of their own inner steps."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
