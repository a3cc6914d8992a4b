"""The text and image sets and the models of the source documents, by name."""

from __future__ import annotations

from dataclasses import dataclass

SENTIMENT = ("negative", "positive")
FASHION_NAMES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
CIFAR10_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


@dataclass(frozen=True)
class TextSet:
    """Where a text set lies on the hub and what its columns mean.

    Args:
        hub_name: of the data set.
        config: configuration of a data set that has several.
        text_column: column with the text.
        label_names: meaning of the integers in `label_column`.
        label_column: column with the label.
        split: part with public labels and the most rows.
        pair_column: with the second text, where a row is a pair of texts.
    """

    hub_name: str
    config: str | None
    text_column: str
    label_names: tuple[str, ...]
    label_column: str = "label"
    split: str = "train"
    pair_column: str | None = None


@dataclass(frozen=True)
class ImageSetFacts:
    """Where an image set lies and what its labels mean.

    Args:
        hub_name: of the data set.
        image_column: column with the pictures.
        label_names: meaning of the integers in the column `label`.
        folder: where a package of the system puts its idx files.
    """

    hub_name: str
    image_column: str
    label_names: tuple[str, ...]
    folder: str | None = None


@dataclass(frozen=True)
class PaperModel:
    """A model of the source documents.

    Args:
        hub_name: None for embeddings that come from an API.
        dim: of the embedding, None where the source documents do not say.
        decoder: whether attention is causal, so that only the last token has seen all others.
        gated: whether the hub asks for a login.
    """

    hub_name: str | None
    dim: int | None
    decoder: bool
    gated: bool = False


TEXT_SETS: dict[str, TextSet] = {
    "imdb": TextSet("stanfordnlp/imdb", None, "text", SENTIMENT),
    "rotten_tomatoes": TextSet("cornell-movie-review-data/rotten_tomatoes", None, "text", SENTIMENT),
    "amazon_polarity": TextSet("fancyzhx/amazon_polarity", None, "content", SENTIMENT),
    "sst2": TextSet("nyu-mll/glue", "sst2", "sentence", SENTIMENT),
    "tweet_eval": TextSet("cardiffnlp/tweet_eval", "sentiment", "text", ("negative", "neutral", "positive")),
    "ag_news": TextSet(
        "fancyzhx/ag_news", None, "text", ("world", "sports", "business", "science and technology")
    ),
}

PAIR_SETS: dict[str, TextSet] = {
    "qqp": TextSet("nyu-mll/glue", "qqp", "question1", ("different", "same"), pair_column="question2"),
}

IMAGE_SETS: dict[str, ImageSetFacts] = {
    "fashion_mnist": ImageSetFacts(
        "zalando-datasets/fashion_mnist", "image", FASHION_NAMES, "/usr/share/datasets/fashion-mnist"
    ),
    "mnist": ImageSetFacts("ylecun/mnist", "image", tuple("0123456789")),
    "cifar10": ImageSetFacts("uoft-cs/cifar10", "img", CIFAR10_NAMES),
}

PAPER_MODELS: dict[str, PaperModel] = {
    "bert": PaperModel("google-bert/bert-base-uncased", 768, decoder=False),
    "roberta": PaperModel("FacebookAI/roberta-base", 768, decoder=False),
    "llama-3.2-1b": PaperModel("meta-llama/Llama-3.2-1B", 2048, decoder=True, gated=True),
    "deepseek-r1-distill-qwen-1.5b": PaperModel(
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1536, decoder=True
    ),
    "gpt-3-embeddings": PaperModel(None, None, decoder=True),
}
