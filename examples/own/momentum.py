"""A federated optimiser of one's own: ``fcit run CONFIG fedopt=./examples/own/momentum.py:Momentum``."""

from pydantic import Field

from fcit.config import Section
from fcit.fedopt.base import FedOpt


class Momentum(FedOpt):
    """m <- beta m + (mean - theta); theta <- theta + m. Kept per subspace, saved with every checkpoint."""

    class Options(Section):
        """Keys under ``fedopt:``."""

        beta: float = Field(0.5, ge=0, lt=1)

    summary = "server momentum"

    def step(self, old, mean, memory):
        moved = {}
        for name, theta in old.items():
            memory[name] = self.options.beta * memory.get(name, 0.0) + (mean[name] - theta)
            moved[name] = theta + memory[name]
        return moved
