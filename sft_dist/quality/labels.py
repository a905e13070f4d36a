"""Labels: which there are in each split, how evenly, whether the model knows them in the same order, and which look wrong."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sft_dist.quality.findings import Finding, Places, RowId, found, rows_text
from sft_dist.recipe.text import join_names

UNEVEN = 10.0  # the largest class has this many times the rows of the smallest
FEW = 10  # training rows of a class
MOST_JUDGED = 20_000  # rows the simple classifier is trained on
NEEDED_ACCURACY = 0.8  # below it the simple classifier's doubts say more about itself than about the labels
DOUBT = 0.05  # a label with a smaller calibrated probability is suspicious
FOLDS = 5

_OUTSIDE = "O"
_NUMBERED = re.compile(r"LABEL_\d+")

Counts = Mapping[str, Mapping[str, int]]  # split -> class -> rows (or tokens, boxes, pixels) of it


def look_at_classes(
    counts: Counts,
    places_of: Mapping[str, Mapping[str, Sequence[RowId]]],
    unit: str = "rows",
    known: Sequence[str] = (),  # classes the model will have, whether or not there are training rows of them
) -> list[Finding]:
    """Classes that a split lacks, that are rare, that are uneven. places_of: split -> class -> its first rows. Unevenness is
    told only where it is rows that have a class: there it can be weighed against."""
    train = counts.get("train", {})
    findings = []
    for split, classes in counts.items():
        if split == "train":
            continue
        for name in sorted(set(classes) - {*train, *known}):
            rows = places_of.get(split, {}).get(name, ())
            near = difflib.get_close_matches(name, list(train), 1)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            findings.append(found("label-not-in-training", f"{name!r} is in {split} and not in train{guess}", rows))
        if missing := sorted(set(train) - set(classes)):
            findings.append(
                found("label-missing-in-split", f"{split} has no row of {join_names(missing, 10)}", label=missing)
            )
    classes = {name: count for name, count in train.items() if name != _OUTSIDE}
    if rare := sorted((name for name, count in classes.items() if count < FEW), key=lambda name: classes[name]):
        said = ", ".join(f"{name} ({classes[name]})" for name in rare[:10])
        rows = [row for name in rare for row in places_of.get("train", {}).get(name, ())]
        findings.append(
            found("rare-class", f"under {FEW} {unit} in train: {said}", rows, classes={n: classes[n] for n in rare})
        )
    if unit == "rows" and len(classes) > 1 and max(classes.values()) >= UNEVEN * min(classes.values()):
        most, least = max(classes, key=lambda n: classes[n]), min(classes, key=lambda n: classes[n])
        weights = balanced_weights(classes)
        said = ", ".join(f"{name}: {weight:.3g}" for name, weight in list(weights.items())[:10])
        message = f"{classes[most]:,} {most} to {classes[least]:,} {least} in train; balanced class weights: {said}"
        findings.append(found("class-imbalance", message, class_weights=weights))
    return findings


def balanced_weights(counts: Mapping[str, int]) -> dict[str, float]:
    """What `class_weights: balanced` means: all rows / (classes x rows of the class)."""
    total = sum(counts.values())
    return {name: total / (len(counts) * count) for name, count in counts.items()}


def look_at_order(labels: Sequence[str], model_labels: Mapping[int, str] | None) -> list[Finding]:
    """The model's own head knows the same classes by other numbers."""
    if not labels or not model_labels or all(_NUMBERED.fullmatch(name) for name in model_labels.values()):
        return []
    theirs = [model_labels[number].casefold() for number in sorted(model_labels)]
    ours = [name.casefold() for name in labels]
    if sorted(theirs) != sorted(ours) or theirs == ours:
        return []
    order = [model_labels[number] for number in sorted(model_labels)]
    return [
        found(
            "label-order",
            f"the model knows {join_names(order, 10)}, in this order; the recipe gives {join_names(labels, 10)}",
            model=order,
        )
    ]


def look_at_tags(places: Places, tags: Sequence[Sequence[str]]) -> list[Finding]:
    """I-X that neither B-X nor I-X comes before. Data without any B- is in another scheme, and left alone."""
    if not any(tag.startswith("B-") for row in tags for tag in row):
        return []
    broken = [index for index, row in enumerate(tags) if _first_break(row) is not None]
    if not broken:
        return []
    place = _first_break(tags[broken[0]])
    split, row = places[broken[0]]
    message = f"I- without B-: {rows_text(len(broken))}, such as {tags[broken[0]][place or 0]} at word {place} of {split} {row}"
    return [found("broken-tags", message, places.named(broken))]


def _first_break(tags: Sequence[str]) -> int | None:
    before = _OUTSIDE
    for number, tag in enumerate(tags):
        if tag.startswith("I-") and before not in (tag, f"B-{tag[2:]}"):
            return number
        before = tag
    return None


# ── suspicious labels ───────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Suspicion:
    """A label the simple classifier does not believe."""

    index: int
    given: str
    likely: str
    probability: float  # of the given label


@dataclass(frozen=True)
class Judgement:
    accuracy: float  # of the simple classifier, out of fold
    rows: int
    suspicions: tuple[Suspicion, ...]  # the least believable first

    def at(self, indices: np.ndarray) -> Judgement:
        """The same about `indices` of a larger whole, of which these were the rows."""
        return replace(self, suspicions=tuple(replace(one, index=int(indices[one.index])) for one in self.suspicions))


def judge_labels(features: Any, labels: Sequence[str]) -> Judgement | None:
    """Confident learning (Northcutt et al. 2021, arXiv 1911.00068) on out-of-fold probabilities of a logistic regression,
    calibrated by one temperature (Guo et al. 2017, arXiv 1706.04599). None: too few rows to say anything.

    features: (rows, features), sparse or dense. Suspicious is what cleanlab counts as an issue and the classifier gives
    less than DOUBT.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    names, numbers = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
    enough = np.bincount(numbers) >= FOLDS
    usable = np.flatnonzero(enough[numbers])
    if enough.sum() < 2 or len(usable) < 4 * FOLDS:
        return None
    names, numbers = np.unique(names[numbers[usable]], return_inverse=True)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    probabilities = cross_val_predict(
        LogisticRegression(max_iter=200), features[usable], numbers, cv=folds, method="predict_proba"
    )
    accuracy = float((probabilities.argmax(1) == numbers).mean())
    if accuracy < NEEDED_ACCURACY:
        return Judgement(accuracy, len(usable), ())
    from cleanlab.filter import find_label_issues

    probabilities = calibrated(probabilities, numbers)
    given = probabilities[np.arange(len(usable)), numbers]
    issues = find_label_issues(numbers, probabilities, n_jobs=1)
    doubted = np.flatnonzero(issues & (given < DOUBT))
    doubted = doubted[np.argsort(given[doubted], kind="stable")]
    likely = probabilities.argmax(1)
    return Judgement(
        accuracy,
        len(usable),
        tuple(
            Suspicion(int(usable[i]), str(names[numbers[i]]), str(names[likely[i]]), float(given[i])) for i in doubted
        ),
    )


def look_at_judgement(places: Places, judged: Judgement) -> list[Finding]:
    if not judged.suspicions:
        return []
    rows = [places[one.index] for one in judged.suspicions]
    message = f"{rows_text(len(rows))}: a simple classifier that is right for {judged.accuracy:.0%} gives each label under {DOUBT:.0%}"
    table = [
        {"split": split, "row": row, "given": one.given, "likely": one.likely, "probability": round(one.probability, 4)}
        for (split, row), one in zip(rows, judged.suspicions, strict=True)
    ]
    return [found("suspicious-label", message, rows, suspicions=table[:1000])]


def calibrated(
    probabilities: np.ndarray,  # (rows, classes)
    numbers: np.ndarray,  # (rows,) class of each
) -> np.ndarray:
    """The same order of classes, with the temperature under which the given classes are likeliest."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    logs = np.log(np.clip(probabilities, 1e-12, None))
    rows = np.arange(len(numbers))

    def surprise(log_scale: float) -> float:
        return -float(log_softmax(logs * np.exp(log_scale), axis=1)[rows, numbers].mean())

    best = minimize_scalar(surprise, bounds=(-2.0, 3.0), method="bounded")
    return np.exp(log_softmax(logs * np.exp(best.x), axis=1))


def text_features(texts: Sequence[str]) -> Any:
    """(texts, words) TF-IDF of the words in the first 4,000 characters; of characters where there are no spaces."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    cut = [text[:4000] for text in texts]
    spaced = sum(text.count(" ") for text in cut) * 20 > sum(map(len, cut))
    how: dict[str, Any] = {} if spaced else {"analyzer": "char", "ngram_range": (1, 3)}
    return TfidfVectorizer(sublinear_tf=True, min_df=2, max_features=30_000, **how).fit_transform(cut)


def class_counts(values: Sequence[Any]) -> Counter[str]:
    """Rows of each class; a row with a list counts for each of its classes."""
    return Counter(str(name) for value in values for name in (value if isinstance(value, list) else [value]))
