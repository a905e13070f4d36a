"""Labels: which there are in each split, how evenly, whether the model knows them in the same order, and which look wrong."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np

from sft_dist.quality.findings import Finding, RowId, RowIndex, make_finding, rows_text
from sft_dist.recipe.text import join_names

UNEVEN = 10.0  # the largest class has this many times the rows of the smallest
RARE_ROWS = 10  # training rows of a class
MAX_REVIEWED = 20_000  # rows the simple classifier is trained on
NEEDED_ACCURACY = 0.8  # below it the simple classifier's doubts say more about itself than about the labels
DOUBT = 0.05  # a label with a smaller calibrated probability is suspicious
FOLDS = 5

_OUTSIDE = "O"
_NUMBERED = re.compile(r"LABEL_\d+")

RANDOM_DIVISION = (
    "the random division put all rows of the class there: set another data.split.seed, hold out less or add rows; or list every"
    " class in data.labels, which accepts one that is never learned"
)

Counts = Mapping[str, Mapping[str, int]]  # split -> class -> rows (or tokens, boxes, pixels) of it


def check_classes(
    counts: Counts,
    places_of: Mapping[str, Mapping[str, Sequence[RowId]]],
    unit: str = "rows",
    expected_classes: Sequence[str] = (),  # classes the model will have, whether or not there are training rows of them
    given_classes: Sequence[str] = (),  # data.labels
    divided: Collection[str] = (),  # splits that were held out at random
) -> list[Finding]:
    """Classes that a split lacks, that are rare, that are uneven. places_of: split -> class -> its first rows. Unevenness is
    told only where it is rows that have a class: there it can be weighed against."""
    train = counts.get("train", {})
    findings = []
    for split, classes in counts.items():
        if split == "train":
            continue
        for name in sorted(set(classes) - {*train, *expected_classes}):
            rows = places_of.get(split, {}).get(name, ())
            matches = difflib.get_close_matches(name, list(train), 1)
            guess = f"; did you mean {matches[0]!r}?" if matches else ""
            finding = make_finding("label-not-in-training", f"{name!r} is in {split} and not in train{guess}", rows)
            findings.append(replace(finding, advice=RANDOM_DIVISION if split in divided else ""))
        if missing := sorted(set(train) - set(classes)):
            findings.append(
                make_finding(
                    "label-missing-in-split", f"{split} has no row of {join_names(missing, 10)}", label=missing
                )
            )
    if absent := [name for name in given_classes if not train.get(name)]:
        message = f"data.labels has {join_names(absent, 10)}, and train has no row of it"
        findings.append(make_finding("label-without-rows", message, label=absent))
    classes = {name: count for name, count in train.items() if name != _OUTSIDE}
    if rare := sorted((name for name, count in classes.items() if count < RARE_ROWS), key=lambda name: classes[name]):
        listed = ", ".join(f"{name} ({classes[name]})" for name in rare[:10])
        # A row of several rare classes is named once.
        rows = list(dict.fromkeys(row for name in rare for row in places_of.get("train", {}).get(name, ())))
        findings.append(
            make_finding(
                "rare-class",
                f"under {RARE_ROWS} {unit} in train: {listed}",
                rows,
                classes={n: classes[n] for n in rare},
            )
        )
    if unit == "rows" and len(classes) > 1 and max(classes.values()) >= UNEVEN * min(classes.values()):
        largest, smallest = max(classes, key=lambda n: classes[n]), min(classes, key=lambda n: classes[n])
        weights = balanced_class_weights(classes)
        listed = ", ".join(f"{name}: {weight:.3g}" for name, weight in list(weights.items())[:10])
        message = f"{classes[largest]:,} {largest} to {classes[smallest]:,} {smallest} in train; balanced class weights: {listed}"
        findings.append(make_finding("class-imbalance", message, class_weights=weights))
    return findings


def check_spellings(names: Iterable[str]) -> list[Finding]:
    """Classes that are the same but for letter case, blanks, Unicode form, or the way a whole number is written."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(_spelling_key(name), []).append(name)
    if not (alike := [group for group in groups.values() if len(group) > 1]):
        return []
    listed = "; ".join(" and ".join(map(repr, group)) for group in alike[:10])
    return [make_finding("label-spelling", f"{listed} are different classes", labels=alike)]


def _spelling_key(name: str) -> str:
    text = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    try:
        number = Decimal(text)
        return str(int(number)) if number.adjusted() < 30 and number == int(number) else text
    except (ArithmeticError, ValueError):
        return text


def balanced_class_weights(counts: Mapping[str, int]) -> dict[str, float]:
    """What `class_weights: balanced` means: all rows / (classes x rows of the class)."""
    total = sum(counts.values())
    return {name: total / (len(counts) * count) for name, count in counts.items()}


def check_label_order(labels: Sequence[str], model_labels: Mapping[int, str] | None) -> list[Finding]:
    """The model's own head knows the same classes by other numbers."""
    if not labels or not model_labels or all(_NUMBERED.fullmatch(name) for name in model_labels.values()):
        return []
    theirs = [model_labels[number].casefold() for number in sorted(model_labels)]
    ours = [name.casefold() for name in labels]
    if sorted(theirs) != sorted(ours) or theirs == ours:
        return []
    order = [model_labels[number] for number in sorted(model_labels)]
    return [
        make_finding(
            "label-order",
            f"the model knows {join_names(order, 10)}, in this order; the recipe gives {join_names(labels, 10)}",
            model=order,
        )
    ]


def check_tags(row_index: RowIndex, tags: Sequence[Sequence[str]]) -> list[Finding]:
    """I-X that neither B-X nor I-X comes before. Data without any B- is in another scheme, and left alone."""
    if not any(tag.startswith("B-") for row in tags for tag in row):
        return []
    broken = [index for index, row in enumerate(tags) if _first_break(row) is not None]
    if not broken:
        return []
    first_break = _first_break(tags[broken[0]])
    split, row = row_index[broken[0]]
    message = f"I- without B-: {rows_text(len(broken))}, such as {tags[broken[0]][first_break or 0]} at word {first_break} of {split} {row}"
    return [make_finding("broken-tags", message, row_index.row_ids(broken))]


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
    label: str
    likely: str
    probability: float  # of that label


@dataclass(frozen=True)
class LabelReview:
    accuracy: float  # of the simple classifier, out of fold
    rows: int
    suspicions: tuple[Suspicion, ...]  # the least believable first

    def at(self, indices: np.ndarray) -> LabelReview:
        """The same about `indices` of a larger whole, of which these were the rows."""
        return replace(
            self,
            suspicions=tuple(replace(suspicion, index=int(indices[suspicion.index])) for suspicion in self.suspicions),
        )


def review_labels(features: Any, labels: Sequence[str]) -> LabelReview | None:
    """Confident learning (Northcutt et al. 2021, arXiv 1911.00068) on out-of-fold probabilities of a logistic regression,
    calibrated by one temperature (Guo et al. 2017, arXiv 1706.04599). None: too few rows to say anything.

    features: (rows, features), sparse or dense. Suspicious is what cleanlab counts as an issue and the classifier gives
    less than DOUBT.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from threadpoolctl import threadpool_limits

    names, numbers = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
    enough = np.bincount(numbers) >= FOLDS
    usable = np.flatnonzero(enough[numbers])
    if enough.sum() < 2 or len(usable) < 4 * FOLDS:
        return None
    names, numbers = np.unique(names[numbers[usable]], return_inverse=True)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    # The matrices are small: with more threads, BLAS mostly waits, on a shared machine for forty times as long.
    with threadpool_limits(1):
        probabilities = cross_val_predict(
            LogisticRegression(max_iter=200), features[usable], numbers, cv=folds, method="predict_proba"
        )
    accuracy = float((probabilities.argmax(1) == numbers).mean())
    if accuracy < NEEDED_ACCURACY:
        return LabelReview(accuracy, len(usable), ())
    from cleanlab.filter import find_label_issues

    probabilities = calibrated(probabilities, numbers)
    label_probabilities = probabilities[np.arange(len(usable)), numbers]
    issues = find_label_issues(numbers, probabilities, n_jobs=1)
    doubted = np.flatnonzero(issues & (label_probabilities < DOUBT))
    doubted = doubted[np.argsort(label_probabilities[doubted], kind="stable")]
    likely = probabilities.argmax(1)
    return LabelReview(
        accuracy,
        len(usable),
        tuple(
            Suspicion(int(usable[i]), str(names[numbers[i]]), str(names[likely[i]]), float(label_probabilities[i]))
            for i in doubted
        ),
    )


def check_labels(row_index: RowIndex, review: LabelReview) -> list[Finding]:
    if not review.suspicions:
        return []
    rows = [row_index[suspicion.index] for suspicion in review.suspicions]
    message = f"{rows_text(len(rows))}: a simple classifier that is right for {review.accuracy:.0%} gives each label under {DOUBT:.0%}"
    table = [
        {
            "split": split,
            "row": row,
            "given": suspicion.label,
            "likely": suspicion.likely,
            "probability": round(suspicion.probability, 4),
        }
        for (split, row), suspicion in zip(rows, review.suspicions, strict=True)
    ]
    return [make_finding("suspicious-label", message, rows, suspicions=table[:1000])]


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


def text_features(texts: Sequence[str]) -> Any | None:
    """(texts, words) TF-IDF of the words in the first 4,000 characters; of characters where there are no spaces. None where no
    word is in two texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    cut = [text[:4000] for text in texts]
    spaced = sum(text.count(" ") for text in cut) * 20 > sum(map(len, cut))
    options: dict[str, Any] = {} if spaced else {"analyzer": "char", "ngram_range": (1, 3)}
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, max_features=30_000, **options)
    try:
        return vectorizer.fit_transform(cut)
    except ValueError:  # scikit-learn's answer to texts without a term that may be counted
        return None
