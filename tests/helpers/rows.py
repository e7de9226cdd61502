"""Rows of conversations as files have them."""

from fcit.data.records import Record, Turn


def said(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


def chat(*texts: object) -> list[dict]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def shown(name: str = "", **more: object) -> dict:
    return {"type": "image", **({"image": name} if name else {}), **more}


def text(value: str) -> dict:
    return {"type": "text", "text": value}


SYSTEM = {"from": "system", "value": " Be brief.\n"}
THREE = Record(("a.png",), (Turn("Q1", "A1", 1), Turn("Q2", " A2"), Turn("Q3", "A3")))
