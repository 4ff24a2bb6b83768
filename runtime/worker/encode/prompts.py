"""Pure: the prompts that decoder rerankers were trained with, as tokens.

Sources: Qwen3-Reranker's model card; jina-reranker-v3's model card and arXiv 2509.25085. What users write is read as
plain text: a document cannot end its own part of the prompt by naming a special token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.worker.encode.modules import ModelFilesError
from runtime.worker.encode.rows import Row, Texts

QWEN3_SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
QWEN3_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
JINA_SYSTEM = (
    "You are a search relevance expert who can determine a ranking of the passages based on how relevant they are to "
    "the query. If the query is a question, how relevant a passage is depends on how well it answers the question. "
    "If not, try to analyze the intent of the query and assess how well each passage satisfies the intent. "
    "If an instruction is provided, you should follow the instruction when determining the ranking."
)
JINA_BLOCK = 125
"""Documents in one prompt, at most."""
JINA_QUERY_TOKENS = 512
JINA_DOCUMENT_TOKENS = 2048
"""What the model's own code cuts queries and documents to."""
_ANSWER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_DOCUMENT_MARK = "<|embed_token|>"
_QUERY_MARK = "<|rerank_token|>"


class YesNoPrompt:
    """Asks Qwen3-Reranker about one document after the other."""

    def __init__(self, texts: Texts) -> None:
        """Raises ModelFilesError where the vocabulary lacks the two answers."""
        self._texts = texts
        tokenizer = texts.tokenizer
        self.yes, self.no = (_token(texts, word) for word in ("yes", "no"))
        before = f"<|im_start|>system\n{QWEN3_SYSTEM}<|im_end|>\n<|im_start|>user\n"
        self._before: list[int] = tokenizer.encode(before, add_special_tokens=False).ids
        self._behind: list[int] = tokenizer.encode(_ANSWER, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = True

    def rows(
        self, query: str, documents: Sequence[str], instruction: str | None, names: Sequence[str], *, truncate: bool
    ) -> list[Row]:
        """Return one row for each document; raises RequestError."""
        room = self._texts.max_length - len(self._before) - len(self._behind)
        head = f"<Instruct>: {instruction or QWEN3_INSTRUCTION}\n<Query>: {query}\n<Document>: "
        if len(self._texts.read([head], room)[0]) >= room:
            raise self._texts.too_long("query")
        rows = []
        encodings = self._texts.read([head + document for document in documents], room)
        for encoding, name in zip(encodings, names, strict=True):
            is_cut = len(encoding) > room
            if is_cut and not truncate:
                raise self._texts.too_long(name)
            rows.append(Row([*self._before, *encoding.ids[:room], *self._behind], cut=(is_cut,)))
        return rows


@dataclass(frozen=True, slots=True)
class _Passage:
    tokens: list[int]
    is_cut: bool


class ListwisePrompt:
    """Shows jina-reranker-v3 many documents at once; the row's marks are theirs, and the query's as the last one."""

    def __init__(self, texts: Texts) -> None:
        """Raises ModelFilesError where the vocabulary lacks a special token."""
        self._texts = texts
        self._document_mark = _token(texts, _DOCUMENT_MARK)
        self._query_mark = _token(texts, _QUERY_MARK)
        self._before = self._template(f"<|im_start|>system\n{JINA_SYSTEM}<|im_end|>\n<|im_start|>")
        self._behind = self._template("\n</query>" + _ANSWER)
        texts.tokenizer.encode_special_tokens = True
        self._around = len(self._template('\n</passage>\n<passage id="1000">\n')) + 1
        """Tokens around a passage, at most."""

    def rows(
        self, query: str, documents: Sequence[str], instruction: str | None, names: Sequence[str], *, truncate: bool
    ) -> list[Row]:
        """Return one row for each block of documents, in their order; raises RequestError."""
        query = _clean(query)
        (asked,) = self._texts.read([query], JINA_QUERY_TOKENS)
        if len(asked) > JINA_QUERY_TOKENS:
            if not truncate:
                raise self._texts.too_long("query")
            query = self._texts.tokenizer.decode(asked.ids[:JINA_QUERY_TOKENS])
        begin = len(self._row(query, [], instruction).tokens) + len(self._template("1000"))
        longest = self._texts.max_length - begin - self._around
        if longest < 1:
            raise self._texts.too_long("query")
        blocks: list[list[_Passage]] = []
        room = 0
        for passage in self._passages(documents, names, min(JINA_DOCUMENT_TOKENS, longest), truncate=truncate):
            need = len(passage.tokens) + self._around
            if need > room or len(blocks[-1]) == JINA_BLOCK:
                blocks.append([])
                room = self._texts.max_length - begin
            blocks[-1].append(passage)
            room -= need
        return [self._row(query, block, instruction) for block in blocks]

    def _passages(self, documents: Sequence[str], names: Sequence[str], room: int, *, truncate: bool) -> list[_Passage]:
        passages = []
        encodings = self._texts.read([_clean(document) for document in documents], room)
        for encoding, name in zip(encodings, names, strict=True):
            is_cut = len(encoding) > room
            if is_cut and not truncate:
                raise self._texts.too_long(name)
            passages.append(_Passage(encoding.ids[:room], is_cut))
        return passages

    def _row(self, query: str, block: Sequence[_Passage], instruction: str | None) -> Row:
        opening = (
            f"user\nI will provide you with {len(block)} passages, each indicated by a numerical identifier. "
            f"Rank the passages based on their relevance to query: {query}\n"
        )
        if instruction:
            opening += f"<instruct>\n{instruction}\n</instruct>\n"
        tokens = [*self._before, *self._template(opening)]
        marks = []
        for number, passage in enumerate(block):
            between = "\n</passage>\n" if number else ""
            tokens += self._template(f'{between}<passage id="{number}">\n')
            tokens += passage.tokens
            marks.append(len(tokens))
            tokens.append(self._document_mark)
        tokens += self._template(f"\n</passage>\n<query>\n{query}")
        marks.append(len(tokens))
        tokens += [self._query_mark, *self._behind]
        return Row(tokens, marks=tuple(marks), cut=tuple(passage.is_cut for passage in block))

    def _template(self, text: str) -> list[int]:
        tokens: list[int] = self._texts.tokenizer.encode(text, add_special_tokens=False).ids
        return tokens


def _clean(text: str) -> str:
    for mark in (_DOCUMENT_MARK, _QUERY_MARK):
        text = text.replace(mark, "")
    return text


def _token(texts: Texts, word: str) -> int:
    token = texts.tokenizer.token_to_id(word)
    if token is None:
        raise ModelFilesError(f"the tokenizer has no token {word!r}: this is not the reranker it was taken for")
    return int(token)
