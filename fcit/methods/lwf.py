"""LwF: distillation from the model at the start of the stage, on the new data.

Paper: Li and Hoiem, "Learning without Forgetting" (TPAMI 2017, arXiv 1606.09282), for token
distributions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from torch.nn import functional

from fcit.config import Section
from fcit.io.trees import Tensors
from fcit.methods.base import Method, ServerState, Session
from fcit.methods.views import Held, subspace_bytes

if TYPE_CHECKING:
    from fcit.models.shapes import Shape


class LwF(Method):
    """One adapter, distilled from the server's model at the start of the stage.

    loss = CE + strength * KD,   KD = - mean over answer positions of sum_v q_v log p_v,
    q = softmax(z_teacher / T), p = softmax(z_student / T); no teacher in the first stage.

    As in published code, KD is not multiplied by T^2, so its gradient shrinks with T. The teacher is evaluated
    without dropout and on the new data only: if answer formats differ between tasks it protects little. It is sent
    to a client once per stage; its logits are computed at each step.
    """

    class Options(Section):
        """``strength`` is the paper's lambda_o, ``temperature`` its T."""

        strength: float = Field(
            1.0, ge=0, description="lambda_o; 1: the public code of PRISM-FMCL (arXiv 2605.01061); our benches: 0.03"
        )
        temperature: float = Field(2.0, gt=0, description="T; 2: the public code of PRISM-FMCL")

    name = "lwf"
    family = "regularisation"
    summary = "distillation from the model of the stage before, on the new data"
    mixes_ranks = True
    by_record = True

    def prepare(self, session: Session) -> None:
        for teacher in session.constants.values():
            session.adapters.load_teacher(teacher)

    def loss(self, session, examples, features):
        logits, target = session.backbone.answer_logits(examples, features)
        loss = functional.cross_entropy(logits, target)
        if session.constants:
            with session.adapters.teacher():
                teacher_logits, _ = session.backbone.answer_logits(examples, features)
            temperature = self.options.temperature
            target_probabilities = (teacher_logits / temperature).softmax(dim=-1)
            distillation = -(target_probabilities * (logits / temperature).log_softmax(dim=-1)).sum(dim=-1).mean()
            loss = loss + self.options.strength * distillation
        return loss

    def end_stage(self, state: ServerState, stage: int) -> None:
        if "0" in state.subspaces:
            state.memory["teacher"] = {**state.shared, **state.subspaces["0"]}
            state.memory["stage"] = stage

    def held(self, shape: Shape, stages: int) -> Held:
        teacher = {"teacher": subspace_bytes(self.config, shape, "shared", "per_subspace")}
        return Held(client=teacher, server=teacher)

    def constants(self, state: ServerState) -> dict[str, Tensors]:
        if "teacher" not in state.memory:
            return {}
        return {f"teacher-{state.memory['stage']}": state.memory["teacher"]}
