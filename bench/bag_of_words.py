"""How far do words alone go?  A tf-idf logistic regression, the baseline that reads no order.

    python bench/bag_of_words.py                  reviews
    python bench/bag_of_words.py --data sst2
    python bench/bag_of_words.py --data FOLDER --n-grams 2

Letters: n texts, V words of the training texts, M entries that are not zero.
"""

import math
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the modules lie

import torch
import torch.nn.functional as F

from support.dataset import read_split
from support.settings import Parser, Settings, checked
from support.statistics import wilson
from support.terminal import emit, ending


def words_of(text, longest):
    """The words of a text, lower case, and the runs of up to `longest` of them: a Counter."""
    words = re.findall(r"\w+", text.lower())
    counts = Counter()
    for n in range(1, longest + 1):
        for i in range(len(words) - n + 1):
            counts[" ".join(words[i : i + n])] += 1
    return counts


@dataclass(frozen=True)
class Bags:
    """n texts as embedding_bag takes them, one after the other."""

    places: torch.Tensor  # int64 (M,): which of the V words
    starts: torch.Tensor  # int64 (n,): where each text begins
    weights: torch.Tensor  # float64 (M,)

    def logits(self, values, bias):
        """A value for each word (V, 1) and a bias (1,) -> (n,)"""
        sums = F.embedding_bag(
            self.places, values, self.starts, mode="sum", per_sample_weights=self.weights
        )  # (n, 1)
        return (sums + bias)[:, 0]


def tf_idf(texts, idf):
    """Counters of words -> Bags.

    A weight is a count times the word's inverse document frequency; those of a text have length 1.
    Words that no training text has are passed over.
    """
    place = {word: i for i, word in enumerate(idf)}
    places = []
    starts = []
    weights = []
    for text in texts:
        starts.append(len(places))
        known = {word: count * idf[word] for word, count in text.items() if word in idf}
        length = math.sqrt(sum(value * value for value in known.values()))
        for word, value in known.items():
            places.append(place[word])
            weights.append(value / length)
    return Bags(
        torch.tensor(places, dtype=torch.int64),
        torch.tensor(starts),
        torch.tensor(weights, dtype=torch.float64),
    )


def fit(bags, labels, V):
    """Bags of n texts, their labels float64 (n,) -> a value for each word (V, 1), a bias (1,)."""
    values = torch.zeros(V, 1, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([values, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        logits = bags.logits(values, bias)
        cost = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        cost = cost + values.square().sum() / 2  # regularised as is usual (C = 1)
        cost.backward()
        return cost

    optimizer.step(loss)
    return values.detach(), bias.detach()


def answer(train, texts, longest=1):
    """Learn from [(text, label)] -> (labels (n,) for texts, number of words V)"""
    bags = [words_of(text, longest) for text, _ in train]

    # In how many texts a word stands: the rarer, the more it says.
    frequency = Counter()
    for bag in bags:
        frequency.update(bag.keys())
    idf = {word: 1 + math.log((1 + len(bags)) / (1 + n)) for word, n in frequency.items()}

    labels = torch.tensor([label for _, label in train], dtype=torch.float64)
    values, bias = fit(tf_idf(bags, idf), labels, len(idf))
    asked = tf_idf([words_of(text, longest) for text in texts], idf)
    return (asked.logits(values, bias) > 0).long(), len(idf)


@ending()
def main(argv=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--data", default="reviews", help="reviews, sst2, a folder or a table (%(default)s)")
    count = checked(Settings, "batch_size")
    add("--n-grams", type=count, default=1, help="longest run of words (%(default)s)")
    args = parser.parse_args(argv)
    train = read_split(args.data, "train")
    dev = read_split(args.data, "dev")
    answers, V = answer(train, [text for text, _ in dev], args.n_grams)
    labels = torch.tensor([label for _, label in dev])
    right = int((answers == labels).sum())
    n = len(dev)
    low, high = wilson(right, n)
    emit(
        f"bag of words on {args.data}: {V:,} words of {len(train):,} texts; dev accuracy "
        f"{right / n:.4f} of {n} texts, 95 % interval {low:.3f} to {high:.3f}"
    )


if __name__ == "__main__":
    main()
