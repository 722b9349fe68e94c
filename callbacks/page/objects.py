"""The part of a page that shows: of every object its shapes, to be turned, and its views beside the truth."""

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from callbacks.page.links import link
from callbacks.page.models import (  # fmt: skip
    BYTES_PER_FACE,
    FEWEST_FACES,
    Model,
    ShapeFile,
    faces_allowed,
    models_of_object,
    shape_files,
    spread,
)
from callbacks.page.pictures import Picture, embedded, panels_of
from callbacks.page.scores import Key, Shown, common_scores, objects_by_key, score_names, value
from callbacks.page.tables import number, primary_scores
from callbacks.results import file_name

WIDE = 2.2
"""Pictures wider than this many times their height stand below each other, others side by side."""


@dataclass
class Card:
    """An object as the page shows it: of each run a model and pictures, or none."""

    name: str
    category: str = ""
    rows: list[dict[str, str] | None] = field(default_factory=list)
    files: list[ShapeFile | None] = field(default_factory=list)
    panels: list[list[tuple[Path, str, str]]] = field(default_factory=list)
    models: list[Model | None] = field(default_factory=list)
    pictures: list[list[Picture]] = field(default_factory=list)


def cards_of(shown: list[Shown]) -> dict[Key, Card]:
    """Every object of some runs that has a shape or a picture, in the order of the runs' tables."""
    tables = [objects_by_key(one.run) for one in shown]
    files = [shape_files(one.run) for one in shown]
    panels = [panels_of(one.run) for one in shown]
    keys = dict.fromkeys(key for rows in tables for key in rows)
    # of a prediction, and of a run that was only validated, there is no table
    keys |= dict.fromkeys((name, 0) for of_run in files for _, name in of_run)
    known = {file_name(name) for name, _ in keys}
    keys |= dict.fromkeys((name, 0) for of_run in panels for name in of_run if name not in known)
    cards = {}
    for key in keys:
        card = Card(key[0], rows=[rows.get(key) for rows in tables])
        card.category = next((row.get("category", "") for row in card.rows if row), "")
        for row, of_run in zip(card.rows, files, strict=True):
            card.files.append(of_run.get((row["object_index"], row["object_id"])) if row else _named(of_run, key[0]))
        card.panels = [of_run.get(file_name(key[0]), []) if key[1] == 0 else [] for of_run in panels]
        if any(card.files) or any(card.panels):
            cards[key] = card
    return cards


def fill(cards: list[Card], room: int, picture_room: int) -> list[str]:
    """Read shapes and pictures into the cards as far as there is room; notes on what was left out.

    Args:
        cards: empty.
        room: for both, bytes of text.
        picture_room: what pictures may take of it; shapes have the rest.

    Raises:
        ValueError: a file is broken.
    """
    notes, used = _fill_pictures(cards, picture_room)
    return notes + _fill_models(cards, room - used)


def _fill_models(cards: list[Card], room: int) -> list[str]:
    with_shapes = [card for card in cards if any(card.files)]
    num_shapes = sum(file is not None for card in with_shapes for file in card.files)
    most = room // (FEWEST_FACES * BYTES_PER_FACE)
    chosen = spread(len(with_shapes), max(1, most * len(with_shapes) // max(num_shapes, 1)))
    costs = [file.cost for k in chosen for file in with_shapes[k].files if file is not None]
    max_faces = max(faces_allowed(costs, room), FEWEST_FACES)
    left, num_left_out = room, len(with_shapes) - len(chosen)
    for k in chosen:
        models = models_of_object(with_shapes[k].files, max_faces)
        size = sum(len(model.text) for model in models if model is not None)
        if size > left:
            num_left_out += 1
            continue
        with_shapes[k].models, left = models, left - size
    if not num_left_out:
        return []
    return [
        f"The shapes of {num_left_out:,} of {len(with_shapes):,} objects are not in the page; their files are linked."
    ]


def _fill_pictures(cards: list[Card], room: int) -> tuple[list[str], int]:
    left, num_left_out, num_pictures = room, 0, 0
    for card in cards:
        for panels in card.panels:
            pictures = []
            for path, kind, stage in panels:
                pictures.append(embedded(path, kind, stage, left))
                left -= len(pictures[-1].source)
            num_pictures += len(pictures)
            num_left_out += sum(not picture.source for picture in pictures)
            card.pictures.append(pictures)
    if num_left_out:
        return [
            f"{num_left_out:,} of {num_pictures:,} pictures are not in the page; their files are linked."
        ], room - left
    return [], room - left


def object_cards(cards: dict[Key, Card], shown: list[Shown], anchors: dict[Key, str], root: Path) -> str:
    """Every object's shapes side by side and its pictures, as HTML.

    Args:
        cards: filled.
        shown: the runs.
        anchors: id of every card.
        root: folder of the page, which links start from.
    """
    scores = primary_scores(common_scores(shown, score_names([one.run for one in shown])), 2)
    articles = []
    for key, card in cards.items():
        anchor = anchors[key]
        shapes = "".join(
            _shape(card, k, one, f"{anchor}-{k}", root, scores, len(shown) == 1)
            for k, one in enumerate(shown)
            if card.files[k]
        )
        empty = [one.name for one, row in zip(shown, card.rows, strict=True) if row and row["is_empty"] == "True"]
        if empty:
            shapes += f'<p class="none">Empty{": " + escape(", ".join(empty)) if len(shown) > 1 else ""}</p>'
        pictures = [(one, picture) for one, few in zip(shown, card.pictures, strict=False) for picture in few]
        groups = "".join(
            f'<div class="{"stacked" if is_wide else "beside"}">{content}</div>'
            for is_wide in (False, True)
            if (content := "".join(
                _picture(card.name, one, picture, root, len(shown))
                for one, picture in pictures
                if (picture.width > WIDE * picture.height) == is_wide
            ))
        )  # fmt: skip
        is_whole_width = groups or len(shown) > 1 or len(cards) == 1
        category = f" <small>{escape(card.category)}</small>" if card.category else ""
        words = escape(f"{card.name} {card.category}".lower())
        classes = " ".join(["whole"] * bool(is_whole_width) + ["alone"] * (len(shown) == 1))
        articles.append(
            f'<article id="{anchor}" class="{classes}" data-words="{words}">'
            f"<h3>{escape(card.name)}{category}</h3>\n"
            f'<div class="shapes">{shapes}</div><div class="pictures">{groups}</div></article>\n'
        )
    return f'<div class="objects">{"".join(articles)}</div>\n' if articles else ""


def model_texts(cards: dict[Key, Card], anchors: dict[Key, str]) -> str:
    """The models as blocks that a browser neither runs nor shows."""
    return "".join(
        f'<script type="text/plain" id="{anchors[key]}-{k}-model">{model.text}</script>\n'
        for key, card in cards.items()
        for k, model in enumerate(card.models)
        if model is not None
    )


def _shape(card: Card, k: int, one: Shown, anchor: str, root: Path, scores: list[str], is_alone: bool) -> str:
    file, model = card.files[k], card.models[k] if card.models else None
    assert file is not None
    name = card.name if is_alone else f"{card.name}, {one.name}"
    whole = f'<a href="{link(file.path, root)}">PLY</a>'
    if model is None:
        frame = '<div class="viewer none">not in this page</div>'
        words = whole
    else:
        frame = (
            f'<div class="viewer" data-model="{anchor}-model" data-orbit="{model.orbit}" '
            f'data-alt="{escape(name)}: the shape, to be turned"></div>'
        )
        kind = "points" if model.is_points else "faces"
        is_whole = model.shown == model.total
        words = f"{model.total:,} {kind}" if is_whole else f"simplified to {model.shown:,} of {model.total:,} {kind}"
        words += f", {whole}"
    numbers = {score: number(value(card.rows[k], score)).html for score in scores}
    said = ", ".join(f"{escape(score)} {html}" for score, html in numbers.items() if html)
    lines = [*([] if is_alone else [one.label]), *([said] if said else []), words]
    return f"<figure>{frame}<figcaption>{'<br>'.join(lines)}</figcaption></figure>\n"


def _picture(name: str, one: Shown, picture: Picture, root: Path, num_runs: int) -> str:
    whole = f'<a href="{link(picture.path, root)}">PNG</a>'
    run = f"{one.label}, " if num_runs > 1 else ""
    words = f"{run}{picture.kind} of the {picture.stage}, {whole}"
    if not picture.source:
        return f"<figure><figcaption>{words} (not in this page)</figcaption></figure>\n"
    alt = escape(f"{name}, {one.name}: {picture.kind}")
    size = f'width="{picture.width}" height="{picture.height}"'
    image = f'<img src="{picture.source}" alt="{alt}" {size} loading="lazy" decoding="async">'
    return f"<figure>{image}<figcaption>{words}</figcaption></figure>\n"


def _named(files: dict[tuple[str, str], ShapeFile], name: str) -> ShapeFile | None:
    return next((file for (_, object_id), file in files.items() if object_id == name), None)
