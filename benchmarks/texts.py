"""Rows as an application might hold them, made by chance from templates: half Korean, half English.

Same seed, same texts. Their lengths follow a technical manual that was measured: as tokens of the
default model, prefix included, 5,000 of them have 42 at the 5th percentile, 119 at the median, 426
at the 95th and 504 at most, so that a script that cuts at 512 loses nothing.
"""

import random
from typing import Final

__all__ = ["questions", "texts"]

MEDIAN: Final = 99.0  # tokens; one sentence too many is on average half of one
SIGMA: Final = 0.85
LONGEST: Final = 420.0  # tokens
# Characters a token, counted over 10,000 of these sentences each.
CHARACTERS: Final = {"ko": 2.1, "en": 4.3}


def _words(listed: str) -> list[str]:
    return listed.split("|" if "|" in listed else None)


_THINGS: Final = {
    "ko": _words(
        "세탁기 냉장고 에어컨 공기청정기 로봇청소기 전기밥솥 식기세척기 텔레비전 건조기 정수기 "
        "자전거 노트북 프린터 무선공유기 스마트폰 이어폰 카메라 보일러 가습기 전자레인지"
    ),
    "en": _words(
        "washing machine|refrigerator|air conditioner|air purifier|robot vacuum|rice cooker|"
        "dishwasher|television|tumble dryer|water filter|bicycle|laptop|printer|wireless router|"
        "smartphone|headset|camera|boiler|humidifier|microwave oven"
    ),
}
_PARTS: Final = {
    "ko": _words(
        "배수 호스 필터 전원 버튼 온도 센서 문 패킹 배터리 충전 단자 화면 리모컨 냉각 팬 물통 "
        "브러시 안전 잠금장치 급수 밸브 소음 방지 패드 받침대 설명서"
    ),
    "en": _words(
        "drain hose|filter|power button|temperature sensor|door seal|battery|charging port|screen|"
        "remote control|cooling fan|water tank|brush|safety lock|inlet valve|noise pad|stand|"
        "manual"
    ),
}
_PLACES: Final = {
    "ko": _words("서울 부산 대구 인천 광주 대전 울산 수원 제주 전주 춘천 강릉"),
    "en": _words("London Dublin Toronto Sydney Boston Chicago Leeds Austin Denver Oslo"),
}
_SENTENCES: Final = {
    "ko": (
        "{thing}의 {part}에서 이상한 소리가 나면 먼저 전원을 끄고 {number}분쯤 기다려 주세요.",
        "{place} 매장에서 산 {thing}가 {number}일 만에 멈춰서 고객센터에 문의를 남겼습니다.",
        "오류 코드 E{number}은 {part}이 제대로 끼워지지 않았다는 뜻입니다.",
        "{part}을 청소할 때는 미지근한 물을 쓰고, 완전히 말린 다음 다시 조립해야 합니다.",
        "작년보다 전기 요금이 {number}퍼센트 늘었는데 {thing} 때문인지 궁금합니다.",
        "교환이나 환불은 받은 날부터 {number}일 안에 신청할 수 있고, 배송비는 저희가 냅니다.",
        "아이들이 {part}을 만지지 않도록 {thing}는 벽에서 {number}센티미터 떨어진 곳에 두세요.",
        "{place} 지점의 상담원은 평일 아침 {number}시부터 전화를 받습니다.",
        "새 {thing}를 처음 켜면 {part} 점검이 자동으로 시작되며 몇 분이 걸릴 수 있습니다.",
        "같은 문제가 계속되면 모델 번호 {number}와 구입한 날짜를 알려 주시면 빠르게 도와드립니다.",
    ),
    "en": (
        "If the {part} of your {thing} makes a strange noise, switch it off and wait {number} "
        "minutes.",
        "The {thing} we bought in {place} stopped working after {number} days; nobody answered.",
        "Error code E{number} means that the {part} has not been put in all the way.",
        "Clean the {part} with lukewarm water and let it dry before you put it back together.",
        "Our electricity bill went up by {number} percent, maybe because of the {thing}.",
        "You may return the {thing} within {number} days of delivery; we pay for the shipping.",
        "Keep children away from the {part} and leave {number} centimetres behind it.",
        "Our office in {place} takes calls from {number} o'clock in the morning on working days.",
        "When the {thing} is switched on for the first time, it checks its {part} by itself.",
        "Should it happen again, tell us the model number {number} and the date of your purchase.",
    ),
}
_QUESTIONS: Final = {
    "ko": (
        "{place}에서 {thing} {part} 수리는 어디서 하나요?",
        "{thing} {part}에서 소리가 나요",
        "오류 코드 E{number}은 무슨 뜻인가요?",
    ),
    "en": (
        "Where can I get the {part} of my {thing} repaired in {place}?",
        "{thing} {part} makes a noise",
        "What does error code E{number} mean?",
    ),
}


def texts(count: int, seed: int = 0) -> list[str]:
    """Return so many texts, Korean and English by turns, in an order of lengths by chance."""
    chance = random.Random(seed)
    return [_text(chance, "en" if place % 2 else "ko") for place in range(count)]


def questions(count: int, seed: int = 0) -> list[str]:
    """Return so many short questions, no two of them the same."""
    chance = random.Random(seed)
    made: dict[str, None] = {}
    while len(made) < count:
        language = "en" if len(made) % 2 else "ko"
        asked = _fill(chance, language, chance.choice(_QUESTIONS[language]))
        made[f"{asked} ({len(made) + seed * 100_000})"] = None
    return list(made)


def _text(chance: random.Random, language: str) -> str:
    tokens = min(chance.lognormvariate(0, SIGMA) * MEDIAN, LONGEST)
    wanted = tokens * CHARACTERS[language]
    sentences: list[str] = []
    while sum(map(len, sentences)) < wanted:
        sentences.append(_fill(chance, language, chance.choice(_SENTENCES[language])))
    return " ".join(sentences)


def _fill(chance: random.Random, language: str, template: str) -> str:
    return template.format(
        thing=chance.choice(_THINGS[language]),
        part=chance.choice(_PARTS[language]),
        place=chance.choice(_PLACES[language]),
        number=chance.randint(1, 9999),
    )
