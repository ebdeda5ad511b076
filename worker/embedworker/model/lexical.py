"""Words a dense model misses: exact names, numbers, codes, rare terms, as a sparse vector for BM25.

A text is cut into runs of letters and digits, lower-cased. Its terms are:

- each Latin word, without an English ending (plural, -ed, -ing);
- each number of three digits or more;
- each code: ``E-119``, ``10.2.4``, ``ab12``;
- the character bigrams of everything else, which needs no dictionary and suits Korean, where
  PostgreSQL has no text-search configuration. A run of one character is its own term.

English words are no bigrams: 732 bigrams make up all words of a set of English passages, so nearly
every passage has nearly all of them.

A passage's vector holds what BM25 makes of a term's frequency (Robertson and Zaragoza, "The
Probabilistic Relevance Framework: BM25 and Beyond", 2009; k1 = 1.2, b = 0.75), so that its inner
product with the question's idf weights is the BM25 score.

Vectors of the first scheme hold bigrams of everything. Terms of both schemes have places of their
own, so one question can be compared with passages of both, see ``question_terms``.
"""

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from struct import pack
from typing import Final

import numpy as np
import numpy.typing as npt
from pgvector import SparseVector

from embedworker.normalization import normalized

__all__ = [
    "CODE",
    "DIMENSIONS",
    "FIRST",
    "LENGTH",
    "MARK",
    "MOST_TEXTS",
    "NEWEST",
    "SCHEME",
    "SCRIPTS",
    "WORD",
    "length",
    "question_terms",
    "term_vector",
    "term_vectors",
]

_Integers = npt.NDArray[np.int64]

K1: Final = 1.2
B: Final = 0.75

# The first places hold the share of each script, see term_vector, the next the length, and the next
# the mark of the scheme; terms are hashed behind them. With 16 million places, 100,000 distinct
# terms put fewer than one in a hundred on a place in use.
SCRIPTS: Final = ("HANGUL", "LATIN")
LENGTH: Final = len(SCRIPTS)
SCHEME: Final = LENGTH + 1
FIRST: Final = SCHEME + 1
DIMENSIONS: Final = 1 << 24
WHOLE: Final = 3  # letters or digits from which on a word or number is a term as it is
LONGEST: Final = 64  # letters of a word; to look for an ending of 100,000 takes minutes
SHORT: Final = 16  # characters of a run whose terms are kept: 16,384 of them take about 10 MB
MOST_TERMS: Final = 15_000  # pgvector stores at most 16,000 values of a sparsevec
MOST_TEXTS: Final = 1 << 9  # that are weighed together; as many bits are left in a key
MOST_CHARACTERS: Final = 1 << 18  # of them; 100 bytes a character are needed for a moment
PLACE: Final = 30  # bits behind the place of a term in its key
ROW: Final = PLACE + 24  # bits behind the number of its text
MARK: Final = 3.0  # at SCHEME; no term of the first scheme that is hashed there weighs above 2.2

NEWEST: Final = 2  # the scheme that term_vector makes

# What a question's term is, added to its place.
WORD: Final = 1 << 24
CODE: Final = WORD + (1 << 25)

_RUN: Final = re.compile(r"[^\W_]+")
_LATIN: Final = "A-Za-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
_HANGUL: Final = "\uac00-\ud7a3\u1100-\u11ff\u3131-\u318e"
_PART: Final = re.compile(f"[{_LATIN}]+|[0-9]+")
_DIGIT: Final = re.compile("[0-9]")
_CODE: Final = re.compile(
    f"[0-9{_LATIN}]+(?:(?:[-_.]|(?<=[0-9])[/:](?=[0-9]))[0-9{_LATIN}]+)*"  # A4/letter is two
)
_JOINT: Final = re.compile(f"(?<=[{_LATIN}])[-_.](?=[0-9])|(?<=[0-9])[-_.](?=[{_LATIN}])")
# English endings, one replacement after the other.
_ENDINGS: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        ("^([a-z]{2,})ie[sd]$", r"\1y"),
        ("^([a-z]*(?:ss|sh|ch|x|z))es$", r"\1"),
        ("^([a-z]+[a-hj-rtv-z])s$", r"\1"),
        ("^([a-z]*[aeiouy][a-z]+)ing$", r"\1"),
        ("^([a-z]*[aeiouy][a-z]*[a-df-z])ed$", r"\1"),
        (r"^([a-z]+)([bcdfghjkmnpqrtvwx])\2$", r"\1\2"),
        ("^([a-z]{2,})e$", r"\1"),
    )
)


def length(text: str) -> int:
    """Return the number of terms of a text, repetitions counted."""
    return len(_terms(text))


def term_vector(text: str, average_length: float) -> SparseVector:
    """Return the vector of one passage, see :func:`term_vectors`."""
    return term_vectors([text], average_length)[0]


def term_vectors(texts: Sequence[str], average_length: float) -> list[SparseVector]:
    """Return the vector of each passage: sparsevec of ``DIMENSIONS``.

    ``average_length`` is that of the passages of the source, in terms. The first places hold the
    shares of the scripts among the text's letters: a Korean passage shares no bigram with an
    English question, however well it answers it, and search must be able to tell. The place
    ``LENGTH`` holds the number of terms, from which the average is computed, and the place
    ``SCHEME`` says that these are not the terms of the first scheme.
    """
    vectors: list[SparseVector] = []
    group: list[str] = []
    characters = 0
    for text in texts:
        if group and (len(group) == MOST_TEXTS or characters + len(text) > MOST_CHARACTERS):
            vectors += _vectors(group, average_length)
            group, characters = [], 0
        group.append(text)
        characters += len(text)
    return vectors + _vectors(group, average_length) if group else vectors


def _vectors(texts: list[str], average_length: float) -> list[SparseVector]:
    """Return the vectors of a group of at most ``MOST_TEXTS`` texts.

    The terms of all texts are counted and weighed together in numpy: 60 µs for a text of 290
    characters, where one by one took 135.

    They go through pgvector's binary form. The constructor of SparseVector asks ``sys.modules`` for
    ``scipy.sparse``. While another thread imports that module (it loads a model), its classes are
    missing and the constructor raises AttributeError.
    """
    keys = [_keys(text) for text in texts]
    totals = np.array([len(each) // 8 for each in keys])
    norms = K1 * (1 - B + B * totals / max(average_length, 1.0))
    rows = np.repeat(np.arange(len(texts)), totals)
    terms = np.frombuffer(b"".join(keys), np.int64) | rows << ROW
    terms.sort()
    first = np.flatnonzero(np.diff(terms, prepend=-1))
    terms, counts = terms[first], np.diff(first, append=len(terms))
    rows = terms >> ROW
    terms, counts, rows = _most_frequent(terms, counts, rows, len(texts))
    weights = counts * (K1 + 1) / (counts + norms[rows])
    # Terms that share a place are added.
    first = np.flatnonzero(np.diff(terms >> PLACE, prepend=-1))
    weights = np.add.reduceat(weights, first) if len(first) else weights
    rows, places = rows[first], terms[first] >> PLACE & DIMENSIONS - 1
    ends = np.searchsorted(rows, np.arange(len(texts) + 1)) * 4
    place_bytes, weight_bytes = places.astype(">i4").tobytes(), weights.astype(">f4").tobytes()
    vectors = []
    for shares, total, begin, end in zip(
        _shares(texts), totals.tolist(), ends[:-1].tolist(), ends[1:].tolist(), strict=True
    ):
        head = {**shares, SCHEME: MARK}
        if total:
            head[LENGTH] = total
        filled = sorted(head)
        vectors.append(
            SparseVector.from_binary(
                pack(
                    f">iii{len(filled)}i", DIMENSIONS, len(filled) + (end - begin) // 4, 0, *filled
                )
                + place_bytes[begin:end]
                + pack(f">{len(filled)}f", *(head[place] for place in filled))
                + weight_bytes[begin:end]
            )
        )
    return vectors


def _most_frequent(
    terms: _Integers, counts: _Integers, rows: _Integers, texts: int
) -> tuple[_Integers, _Integers, _Integers]:
    """Leave the rarest terms of a text out where they are more than ``MOST_TERMS``."""
    of_each = np.bincount(rows, minlength=texts)
    if of_each.max() <= MOST_TERMS:
        return terms, counts, rows
    order = np.lexsort((-counts, rows))  # of each text, the most frequent first
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(of_each) - of_each, of_each)
    kept = np.sort(order[rank < MOST_TERMS])
    return terms[kept], counts[kept], rows[kept]


def question_terms(text: str) -> tuple[list[int], list[float]]:
    """Return a question's distinct terms, at most 15,000, and the shares of the scripts.

    A term is its place, counted from 1 as in the text form of a sparsevec. To it is added ``CODE``
    for a code and ``WORD`` for what else is a term. Without either it is a bigram of the first
    scheme, for passages whose vectors are still of the first scheme.
    """
    terms = set(_terms(text))
    encoded = [_place(term) + 1 + (CODE if term[0] == "#" else WORD) for term in terms]
    encoded += {_place_before(bigram) + 1 for run in _runs(text) for bigram in _bigrams(run)}
    (shares,) = _shares([text])
    # Codes first, then words: of too many, the bigrams of the first scheme are left out.
    encoded.sort(reverse=True)
    return encoded[:MOST_TERMS], [shares.get(number, 0.0) for number in range(len(SCRIPTS))]


def _runs(text: str) -> list[str]:
    return _RUN.findall(normalized("NFKC", text).lower())


def _bigrams(run: str) -> list[str]:
    return [one + other for one, other in pairwise(run)] or [run]


def _terms(text: str) -> list[str]:
    plain = normalized("NFKC", text).lower()
    return _codes(plain) + [term for run in _RUN.findall(plain) for term in _terms_of(run)]


def _keys(text: str) -> bytes:
    """Return the keys of a text's terms, int64, one after the other."""
    plain = normalized("NFKC", text).lower()
    runs = _RUN.findall(plain)
    short = max(map(len, runs), default=0) <= SHORT
    keys = b"".join(map(_keys_of_short if short else _keys_of, runs))
    codes = _codes(plain)
    return keys + _packed(codes) if codes else keys


def _keys_of(run: str) -> bytes:
    return _keys_of_short(run) if len(run) <= SHORT else _packed(_terms_of(run))


@lru_cache(maxsize=1 << 14)
def _keys_of_short(run: str) -> bytes:
    return _packed(_terms_of(run))


def _packed(terms: list[str]) -> bytes:
    return pack(f"={len(terms)}q", *map(_key, terms))


def _terms_of(run: str) -> list[str]:
    if run.isascii() and run.isalpha() and len(run) >= WHOLE:
        return [_stem(run)]
    return _parts(run)


def _parts(run: str) -> list[str]:
    """Return the Latin words and the numbers of a run as wholes, and the bigrams of the rest.

    The rest of a run is what stands around its Latin words: of ``ktx는`` it is ``는``.
    """
    terms = []
    at = 0
    for part in _PART.finditer(run):
        if len(part[0]) < WHOLE:
            continue
        terms.append(_stem(part[0]))
        if not part[0].isdecimal():
            terms += _bigrams(run[at : part.start()]) if at < part.start() else []
            at = part.end()
    return terms + _bigrams(run[at:]) if at < len(run) else terms


def _codes(plain: str) -> list[str]:
    """Return the codes of a text, each behind the sign #, so that none is a word or a bigram.

    A sign between a letter and a digit is left out: ``E-119`` is ``E119``.
    """
    if not _DIGIT.search(plain):
        return []
    return [
        "#" + _JOINT.sub("", code)
        for code in _CODE.findall(plain)
        if not (code.isalpha() or code.isdecimal()) and _DIGIT.search(code)
    ]


@lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    if len(word) > LONGEST:
        return word
    for ending, rest in _ENDINGS:
        word = ending.sub(rest, word)
    return word


# A corpus has few distinct terms and many of each: looked up, one takes a third of the time.
@lru_cache(maxsize=1 << 17)
def _key(term: str) -> int:
    """Return the place of a term and, behind it, what tells it from others at that place."""
    word = term.encode()
    place = FIRST + zlib.crc32(b"2" + word) % (DIMENSIONS - FIRST - 1)
    return place << PLACE | zlib.crc32(b"3" + word) >> 2


def _place(term: str) -> int:
    return _key(term) >> PLACE


def _place_before(bigram: str) -> int:
    return LENGTH + 1 + zlib.crc32(bigram.encode()) % (DIMENSIONS - LENGTH - 1)


def _shares(texts: Sequence[str]) -> list[dict[int, float]]:
    """Return the share of each script among the letters of each text, where it is not 0."""
    letters = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    scripts = _SCRIPT_OF[np.minimum(letters, len(_SCRIPT_OF) - 1)]
    ends = np.cumsum([0, *map(len, texts)])
    counts = np.stack(
        [
            np.diff(np.concatenate(([0], np.cumsum(scripts == number)))[ends])
            for number in range(len(SCRIPTS))
        ],
        axis=1,
    )
    return [
        {number: count / sum(of_text) for number, count in enumerate(of_text) if count}
        for of_text in counts.tolist()
    ]


def _scripts_of_characters() -> npt.NDArray[np.uint8]:
    """Return the number of each character's script; of others, the last too, a larger one."""
    scripts = np.full(0xD7A3 + 2, len(SCRIPTS), np.uint8)
    for number, ranges in enumerate((_HANGUL, _LATIN)):
        for first, last in re.findall("(.)(?:-(.))?", ranges):
            scripts[ord(first) : ord(last or first) + 1] = number
    return scripts


_SCRIPT_OF: Final = _scripts_of_characters()
