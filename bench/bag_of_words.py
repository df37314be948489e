"""How far do words alone go?  A tf-idf logistic regression, the baseline that reads no order.

    python bench/bag_of_words.py                  reviews
    python bench/bag_of_words.py --data sst2
    python bench/bag_of_words.py --data FOLDER --n-grams 2

Letters: n texts, V words of the training texts, M entries that are not zero.
"""

import argparse
import math
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the modules lie

import torch
import torch.nn.functional as F

from data import read_split
from evaluate import wilson
from support.flags import count
from support.machine import one_sentence


def words_of(text, longest):
    """str -> its words, lower case, and the runs of up to `longest` of them, each once and counted"""
    words = re.findall(r"\w+", text.lower())
    runs = (words[i : i + n] for n in range(1, longest + 1) for i in range(len(words) - n + 1))
    return Counter(map(" ".join, runs))


def tf_idf(texts, idf):
    """[Counter] -> (places in V (M,), where each text begins (n,), weights (M,)), as embedding_bag takes it.

    A weight is a count times the word's inverse document frequency; those of a text have length 1.
    """
    place, places, starts, weights = {word: i for i, word in enumerate(idf)}, [], [], []
    for text in texts:
        known = {word: times * idf[word] for word, times in text.items() if word in idf}
        starts.append(len(places))
        places += [place[word] for word in known]
        length = math.sqrt(sum(value * value for value in known.values()))
        weights += [value / length for value in known.values()]
    return torch.tensor(places), torch.tensor(starts), torch.tensor(weights, dtype=torch.float64)


def fit(places, starts, weights, labels, V):
    """Bags of n texts and their labels (n,) -> a value for each word (V, 1) and a bias (1,)."""
    values = torch.zeros(V, 1, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([values, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        logits = F.embedding_bag(places, values, starts, mode="sum", per_sample_weights=weights) + bias
        cost = F.binary_cross_entropy_with_logits(logits[:, 0], labels, reduction="sum")
        cost = cost + values.square().sum() / 2  # regularised as is usual (C = 1)
        cost.backward()
        return cost

    optimizer.step(loss)
    return values.detach(), bias.detach()


def answer(train, texts, longest=1):
    """Learn from [(text, label)] -> (labels (n,) for texts, number of words V)"""
    bags = [words_of(text, longest) for text, _ in train]
    frequency = Counter(word for bag in bags for word in bag)  # in how many texts it stands
    idf = {word: 1 + math.log((1 + len(bags)) / (1 + n)) for word, n in frequency.items()}
    labels = torch.tensor([label for _, label in train], dtype=torch.float64)
    values, bias = fit(*tf_idf(bags, idf), labels, len(idf))
    places, starts, weights = tf_idf([words_of(text, longest) for text in texts], idf)
    logits = F.embedding_bag(places, values, starts, mode="sum", per_sample_weights=weights) + bias
    return (logits[:, 0] > 0).long(), len(idf)


@one_sentence
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data", default="reviews", help="reviews, sst2 or a folder (%(default)s)")
    add("--n-grams", type=count, default=1, help="longest run of words (%(default)s)")
    args = parser.parse_args(argv)
    train, dev = (read_split(args.data, split) for split in ("train", "dev"))
    texts, labels = zip(*dev)
    answers, V = answer(train, texts, args.n_grams)
    right, n = int((answers == torch.tensor(labels)).sum()), len(dev)
    low, high = wilson(right, n)
    print(f"bag of words on {args.data}: {V:,} words of {len(train):,} texts; dev accuracy "
          f"{right / n:.4f} of {n} texts, 95 % interval {low:.3f} to {high:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
