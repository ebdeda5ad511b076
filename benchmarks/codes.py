"""Codes in long texts: is the page with the question's code the first row?

    python benchmarks/codes.py --model bundled:multilingual-e5-small
    python benchmarks/codes.py --others 99000                        # among 100,000 rows

Makes 1,000 pages of a manual, each with an error code and a part number of its own and otherwise of
the same sentences. Each page is asked for by its bare code, and by a question that holds the code.
Both go through ``embedworker eval``: a table, a worker and embed.search, in the database named by
DATABASE_URL or in the embedded one. Codes follow each other, so neighbours differ in one digit. The
other rows are the beginnings of texts.py, each with a number of its own.

Prints for each setting in how many questions the right page was the first row.
"""

import argparse
import json
import random
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from quality import ours
from texts import texts

from embedworker.model.catalog import BUNDLED_MODEL

SYMPTOMS = (
    "전원을 켜면 표시창이 깜빡이고 곧 꺼집니다.",
    "물이 끝까지 빠지지 않고 소리가 커집니다.",
    "문이 잠기지 않아 운전이 시작되지 않습니다.",
    "온도가 정한 값보다 높게 올라갑니다.",
    "바람이 약해지고 냄새가 납니다.",
)
STEPS = (
    "먼저 전원 플러그를 뽑고 십 분을 기다립니다.",
    "앞 덮개의 나사 두 개를 풀어 덮개를 내립니다.",
    "배선이 눌리거나 벗겨진 곳이 없는지 살펴봅니다.",
    "먼지를 부드러운 솔로 털고 물기를 닦습니다.",
    "연결 단자를 끝까지 밀어 넣어 다시 고정합니다.",
    "거름망을 흐르는 물에 씻은 뒤 그늘에서 말립니다.",
    "덮개를 닫고 전원을 켜서 같은 표시가 나오는지 봅니다.",
    "같은 표시가 다시 나오면 부품을 새것으로 바꿉니다.",
)
KINDS = {"bare": "bare code", "asked": "in a question"}
DIFFERENT = 5000  # other texts, before their numbers
LONGEST = 150  # characters of another row
QUESTIONS = (
    "화면에 {}라고 나오는데 어떻게 해야 하나요?",
    "{} 표시가 떴을 때 점검하는 방법을 알려 주세요",
    "어제부터 {} 오류가 계속 나는데 무엇을 바꿔야 하나요?",
)


def page(number: int, chance: random.Random) -> tuple[str, str, str]:
    """Return the error code, the part number and the text of a page, of over 300 characters."""
    error, part = f"E-{1000 + number}", f"PX-{20 + number // 100}-{number % 100:03}"
    steps = " ".join(chance.sample(STEPS, 6))
    text = (
        f"{chance.choice(SYMPTOMS)} 이때 표시창에 {error}가 나타납니다. {steps} "
        f"바꿀 부품의 번호는 {part}입니다. {chance.choice(SYMPTOMS)} "
        "작업을 마친 뒤에는 날짜와 한 일을 점검표에 적고, 남은 부품은 상자에 넣어 둡니다. "
        "혼자서 하기 어려우면 가까운 서비스 센터에 전화해 기사를 부르십시오."
    )
    return error, part, text


def write(folder: Path, pages: Sequence[tuple[str, str, str]], others: int) -> None:
    """Write a set in the format of BEIR: two questions for each page, by one of its codes."""
    corpus = [{"_id": str(n), "title": "", "text": text} for n, (_, _, text) in enumerate(pages)]
    # The templates have error codes, too. A row with the code that is asked for is a right one.
    known = re.compile("|".join(f"{error.replace('-', '-?')}|{part}" for error, part, _ in pages))
    different = [text for text in texts(min(others, DIFFERENT), 5) if not known.search(text)]
    corpus += [
        {"_id": f"other{n}", "title": "", "text": f"{n} {different[n % len(different)]}"[:LONGEST]}
        for n in range(others)
    ]
    codes = [error if n % 2 else part for n, (error, part, _) in enumerate(pages)]
    queries = [{"_id": f"bare{n}", "text": code} for n, code in enumerate(codes)]
    queries += [
        {"_id": f"asked{n}", "text": QUESTIONS[n % 3].format(code)} for n, code in enumerate(codes)
    ]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    judged = "".join(f"{kind}{n}\t{n}\t1\n" for kind in KINDS for n in range(len(pages)))
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)


def main() -> None:
    """Measure both kinds of question and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=BUNDLED_MODEL)
    parser.add_argument("--pages", type=int, default=1000)
    parser.add_argument("--others", type=int, default=0, help="rows beside the pages")
    parser.add_argument(
        "--compare", default="exact+lexical=0,default", help="as of embedworker eval"
    )
    given = parser.parse_args()
    chance = random.Random(7)
    pages = [page(number, chance) for number in range(given.pages)]
    print(f"{given.pages} pages of {sum(len(p[2]) for p in pages) // given.pages} characters")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), pages, given.others)
        report = ours(Path(folder), given.model, given.compare)
    for kind, name in KINDS.items():
        for entry in report["settings"]:
            # nDCG of one right row is 1 where that is the first.
            first = [v == 1 for q, v in entry["by_question"].items() if q.startswith(kind)]
            share = sum(first) / given.pages
            print(f"{name}, {entry['setting']}: right page first in {share:.3f}")


if __name__ == "__main__":
    main()
