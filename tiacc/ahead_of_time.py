"""A call of `optimize` for GPUs that are not here."""

from __future__ import annotations

import torch

from tiacc import mending, models
from tiacc.compiler import Compiled, build
from tiacc.errors import AccuracyError, BuildError
from tiacc.job import Attempt, Job, Trial
from tiacc.runtime import ops


class AheadOfTimeJob(Job):
    """A job whose engines are for GPUs that are not here: they are built, and not run.

    What can be checked here is: with ``check_network``, each network is evaluated on the CPU by the reference interpreter, inside
    the optimized model, and the outputs are compared with the input model's. What is off is mended as where engines run.
    """

    def run(self) -> torch.jit.ScriptModule:
        """Build the model, check what can be checked, save it."""
        report, settings = self.report, self.settings
        if settings.check_network:
            self._run_references()
        attempt = self.within_range(Attempt("ahead of time", self.level, self.candidates))
        targets = ", ".join(settings.target)
        with models.TemporaryModel(self.path) as file:
            if settings.check_network:
                trial = self._checked(attempt, file)
                compiled = trial.compiled
            else:
                trial, compiled = None, self._built(attempt)
                file.write(compiled.module)
            self._describe(compiled, self.level)
            if not compiled.engines:
                raise BuildError(f"nothing of the model can be built for {targets}: {_reasons(compiled)}")
            report.warnings.append(f"the engines were built for {targets} and were not run: there is no such GPU here")
            if compiled.fallbacks:
                report.warnings.append("the operators left in Torch run where the model is moved to; load it with map_location='cuda'")
            if trial is None:
                report.warnings.append("their numbers were not checked; check_network=True evaluates the networks on the CPU")
            else:
                self._accept(trial)
            output_model = file.load()
            file.keep()
        return output_model

    def _built(self, attempt: Attempt) -> Compiled:
        plan = self.plan(attempt)
        return build(self.proposed(plan), plan, self._step)

    def _checked(self, attempt: Attempt, file: models.TemporaryModel) -> Trial:
        """Return an attempt whose networks were evaluated; mended if that is what it takes, and if there is a way."""
        trial = self.judged(self._built(attempt), attempt, file)
        if self.settings.on_accuracy_failure == "repair":
            return mending.mended(self, trial, file) or trial
        return trial

    def _load(self, compiled: Compiled, file: models.TemporaryModel) -> torch.jit.ScriptModule:
        """Write a model, and return it with its networks evaluated in place of its engines, which a load of the file has."""
        from tiacc.backends.tensorrt.interpreted import InterpretedEngine

        file.write(compiled.module)
        by_name = {backend.name: backend for backend in self.candidates}
        for engine in compiled.engines:
            assert engine.spec is not None
            interpreted = InterpretedEngine.of(by_name[engine.backend], engine.subgraph.graph, engine.spec)
            ops.attach(engine.blob, interpreted, "cpu")
        return compiled.module

    def _accept(self, trial: Trial) -> None:
        """Put into the report what the evaluation of the networks gave.

        Raises:
            AccuracyError: An output differs by more than the tolerance.
        """
        if trial.failure or trial.accuracy is None:
            raise AccuracyError(
                f"the networks were evaluated on the CPU, and {trial.failure}; nothing was saved. Raise the tolerance, or keep "
                "operators in float32 with keep_fp32"
            )
        if self.report.precision is not None:
            mending.tell(self.report.precision, trial)
        self._tell(trial.accuracy, trial.tolerance)
        self.report.warnings.append("their networks were evaluated on the CPU by the reference interpreter; the errors are of that")


def _reasons(compiled: Compiled) -> str:
    found = {f"{row.op}: {reason}" for row in compiled.fallbacks for reason in row.reasons.values()}
    return "; ".join(sorted(found)[:5]) or "it has no operators"
