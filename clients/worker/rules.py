"""What the rule for averaging factors (``factors:``) has a client do in its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fcit.fedopt.factors import Separate
from fcit.methods.base import Session


@dataclass(frozen=True)
class Local:
    """A rule and its view of one training."""

    rule: Separate
    session: Session

    def prepare(self) -> None:
        """Before the first step, and before method and federated optimiser look at what is trained."""
        self.rule.prepare(self.session)

    def penalty(self) -> Any:
        """Its term of the loss."""
        return self.rule.penalty(self.session)

    def finish(self) -> None:
        """After the last step."""
        self.rule.finish(self.session)
