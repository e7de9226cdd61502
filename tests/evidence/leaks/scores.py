"""Arithmetic of membership inference: scores of an attack, and how good they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import NormalDist

import numpy as np

#: False positive rate at which attacks are compared (Carlini et al., 2022, section III, argue for a low one).
LOW = 0.01
#: Number of bootstrap samples behind an interval.
REPEATS = 1000
#: Probabilities of answers are kept this far from 1 before the logit.
MARGIN = 1e-9


def auc(scores: np.ndarray, member: np.ndarray) -> float:
    """Probability that a member's score is above a non-member's, ties counted half (Mann and Whitney, 1947).

    Args:
        scores: ``(N,)``, larger for what the attack takes for a member.
        member: ``(N,)`` bool.

    Raises:
        ValueError: there are no members, or nothing else; or a score is NaN.
    """
    inside, outside = _both(scores, member)
    ordered = np.sort(outside)
    below = np.searchsorted(ordered, inside, side="left")
    up_to = np.searchsorted(ordered, inside, side="right")
    return float((below + up_to).sum() / (2 * len(inside) * len(outside)))


def tpr_at(scores: np.ndarray, member: np.ndarray, fpr: float = LOW) -> float:
    """Share of members above the lowest threshold that at most ``fpr`` of the non-members exceed.

    Scores equal to the threshold are on neither side of it, so that a constant score finds no one.

    Raises:
        ValueError: there are no members, or nothing else; or a score is NaN.
    """
    inside, outside = _both(scores, member)
    allowed = int(np.floor(fpr * len(outside)))
    threshold = np.sort(outside)[::-1][allowed] if allowed < len(outside) else -np.inf
    return float((inside > threshold).mean())


def _both(scores: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inside, outside = scores[member], scores[~member]
    if not len(inside) or not len(outside):
        raise ValueError(f"an attack needs members and others to be measured on, got {len(inside)} and {len(outside)}")
    if np.isnan(scores).any():
        raise ValueError("an attack has no score for some record: more shadow models must have it, or not have it")
    return inside, outside


def interval(
    statistic: Callable[[np.ndarray, np.ndarray], float], scores: np.ndarray, member: np.ndarray, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a statistic, over whole rows: the models that were attacked.

    Pairs of one model are not independent, so models are drawn and not pairs.

    Args:
        scores: ``(M, N)``: models, and what is asked about each.
        member: ``(M, N)`` bool.
    """
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(REPEATS):
        rows = rng.integers(len(scores), size=len(scores))
        values.append(statistic(scores[rows].ravel(), member[rows].ravel()))
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def measured(scores: np.ndarray, member: np.ndarray) -> dict[str, float | list[float]]:
    """AUC and true positive rate at :data:`LOW`, each with its interval, of scores ``(M, N)``."""
    result: dict[str, float | list[float]] = {}
    for name, statistic in (("auc", auc), ("tpr", tpr_at)):
        result[name] = round(statistic(scores.ravel(), member.ravel()), 4)
        result[f"{name}_interval"] = [round(bound, 4) for bound in interval(statistic, scores, member)]
    return result


def logit(loss: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) of the probability p = exp(-loss) of a whole answer.

    The confidence that LiRA takes for normal (Carlini et al., 2022, arXiv 2112.03570, section V-A), with the answer as
    the class: the loss is summed over its tokens.
    """
    return -loss - np.log1p(-np.minimum(np.exp(-loss), 1 - MARGIN))


def lira(confidence: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Scores of the online likelihood-ratio attack, each model attacked with all others as shadow models.

    log N(c; mu_in, sigma_in^2) - log N(c; mu_out, sigma_out^2) for each model and record (Carlini et al., 2022,
    algorithm 1), means for each record over the other models that had it and those that had not. Variances are those
    of all records together, as the paper advises for few shadow models (section VI-C).

    Args:
        confidence: ``(M, N)``: models, records; see :func:`logit`.
        member: ``(M, N)`` bool.

    Returns:
        ``(M, N)``; NaN where fewer than two other models had the record, or had it not.
    """
    scores = np.full(confidence.shape, np.nan)
    for model in range(len(confidence)):
        others = np.arange(len(confidence)) != model
        for sign, chosen in ((1, member[others]), (-1, ~member[others])):
            mean, deviation = _fitted(confidence[others], chosen)
            z = (confidence[model] - mean) / deviation
            density = -0.5 * z**2 - np.log(deviation)
            scores[model] = sign * density + (0 if sign == 1 else scores[model])
    return scores


def _fitted(confidence: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean of each record over the chosen models, NaN for fewer than two, and one standard deviation for all."""
    count = chosen.sum(axis=0)
    enough = count >= 2
    total = np.where(chosen, confidence, 0.0).sum(axis=0)
    mean = np.where(enough, total / np.maximum(count, 1), np.nan)
    spread = np.where(chosen & enough, (confidence - np.where(enough, mean, 0.0)) ** 2, 0.0).sum()
    freedom = (count[enough] - 1).sum()
    return mean, float(np.sqrt(max(spread / max(freedom, 1), 1e-12)))


def bound(multiplier: float, releases: int, fpr: float = LOW) -> float:
    """The most true positives any attack on Gaussian mechanisms can have: Phi(Phi^-1(fpr) + sqrt(T) / z).

    Of T releases of noise multiplier z (Dong et al., 2022, arXiv 1905.02383, section 2.2 and corollary 3.3).
    """
    normal = NormalDist()
    return normal.cdf(normal.inv_cdf(fpr) + np.sqrt(releases) / multiplier)


def shares(hits: Iterable[bool]) -> dict[str, float | int | list[float]]:
    """A share with its 95 % interval by Wilson's formula (1927), rounded."""
    found = list(hits)
    count, total, z = sum(found), len(found), NormalDist().inv_cdf(0.975)
    share = count / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    bounds = [round(float(max(0.0, centre - half)), 4), round(float(min(1.0, centre + half)), 4)]
    return {"share": round(share, 4), "interval": bounds, "of": total}
