"""A call of `optimize` for GPUs that are not here."""

from __future__ import annotations

import torch

from tiacc import models
from tiacc.compiler import Compiled, build, propose
from tiacc.errors import AccuracyError, BuildError
from tiacc.job import Attempt, Job
from tiacc.runtime import ops


class AheadOfTimeJob(Job):
    """A job whose engines are for GPUs that are not here: they are built, and not run.

    What can be checked here is: with ``check_network``, each network is evaluated on the CPU by the reference interpreter, inside
    the optimized model, and the outputs are compared with the input model's.
    """

    def run(self) -> torch.jit.ScriptModule:
        """Build the model, check what can be checked, save it."""
        report, settings = self.report, self.settings
        plan = self.plan(self.within_range(Attempt("ahead of time", self.level, self.candidates)))
        compiled = build(propose(self.model, plan, self._step), plan, self._step)
        self._describe(compiled)
        targets = ", ".join(settings.target)
        if not compiled.engines:
            raise BuildError(f"nothing of the model can be built for {targets}: {_reasons(compiled)}")
        with models.TemporaryModel(self.path) as file:
            file.write(compiled.module)
            output_model = file.load()
            report.warnings.append(f"the engines were built for {targets} and were not run: there is no such GPU here")
            if compiled.fallbacks:
                report.warnings.append("the operators left in Torch run where the model is moved to; load it with map_location='cuda'")
            if settings.check_network:
                self._check_networks(compiled)
            else:
                report.warnings.append("their numbers were not checked; check_network=True evaluates the networks on the CPU")
            file.keep()
        return output_model

    def _check_networks(self, compiled: Compiled) -> None:
        """Run the model with its networks interpreted, and compare.

        Raises:
            AccuracyError: An output differs by more than the tolerance.
        """
        from tiacc.backends.tensorrt.interpreted import InterpretedEngine

        self.bar.start("check")
        by_name = {backend.name: backend for backend in self.candidates}
        for engine in compiled.engines:
            assert engine.spec is not None
            interpreted = InterpretedEngine.of(by_name[engine.backend], engine.subgraph.graph, engine.spec)
            ops.attach(engine.blob, interpreted, "cpu")
        tolerance = self.settings.tolerance_for(self._arithmetic(compiled))
        self._run_references()
        accuracy = self.guard.compare(compiled.module)
        self._tell(accuracy, tolerance)
        if not accuracy.error <= tolerance:
            raise AccuracyError(
                f"the networks, evaluated on the CPU, give a relative error of {accuracy.error:.2g}, above the tolerance "
                f"{tolerance:.2g}; nothing was saved. Raise the tolerance, or keep operators in float32 with keep_fp32"
            )
        self.report.warnings.append("their networks were evaluated on the CPU by the reference interpreter; the errors are of that")


def _reasons(compiled: Compiled) -> str:
    found = {f"{row.op}: {reason}" for row in compiled.fallbacks for reason in row.reasons.values()}
    return "; ".join(sorted(found)[:5]) or "it has no operators"
