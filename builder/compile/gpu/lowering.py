"""From Relax down to calls of the virtual machine, with TVM's schedules for GPUs."""

from typing import Any

import tvm
from tvm import relax
from tvm.relax.backend import gpu_generic
from tvm.s_tir import dlight


def lower(module: Any, target: Any) -> Any:
    """Schedule and lower `module` for the GPU `target`."""
    passes = [
        *gpu_generic.library_dispatch_passes(target),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        dlight.ApplyDefaultSchedule(
            dlight.gpu.Matmul(),
            dlight.gpu.GEMV(),
            dlight.gpu.Reduction(),
            dlight.gpu.GeneralReduction(),
            dlight.gpu.Fallback(),
        ),
        *gpu_generic.dataflow_lower_passes(target),
        *gpu_generic.finalize_passes(target),
    ]
    with target, tvm.transform.PassContext(opt_level=3):
        return tvm.transform.Sequential(passes)(module)
