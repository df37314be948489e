"""How fast training is, beside the peers, in one process and one run.

    python tests/benchmark.py                         gpt2 geometry, reviews, about ten minutes on two cores
    python tests/benchmark.py --data FOLDER           the batches of another data set, such as SST-2's
    python tests/benchmark.py --text-tokens 256 --prompt-tokens 5
    python tests/benchmark.py --device cuda --size gpt2-large

Weights are random, so nothing is downloaded.  Every contender trains a prompt of the same length and a head on the
same batches; rounds are interleaved, so that a slow moment of a shared machine hits all of them; medians and ratios
are what to read.  The peers need `pip install -e '.[bench]'`.

(a) the post: transformers' GPT2ForSequenceClassification, prompt inserted after the last token, float32, frozen body
(b) the same under bfloat16 autocast
(c) PEFT prompt tuning (SEQ_CLS), bfloat16 autocast
(d) this project, one prompt                     (d') the same with the text's keys and values kept from before
(e) this project, six prompts of 1 2 5 10 20 50 tokens in a pack, and the same six one after the other
(f) the floor: nothing but (d)'s matrix products, forward and backward
"""
