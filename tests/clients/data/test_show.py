"""Statistics, card and picture of a partition are correct."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from clients.data.drawing import color, picked
from clients.data.even import Iid, PerClient
from clients.data.partition import Partition
from clients.data.show import card, describe, gini, label_distances, picture

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def partition(make_dataset):
    """Client 0: 3 of class 0, 1 of class 1. Client 1: 2 of class 2. One sample of class 2 is left out."""
    return Partition.of(make_dataset([0, 0, 0, 1, 2, 2, 2]), np.array([0, 0, 0, 0, 1, 1, -1]), 2)


def test_the_figures_are_those_of_the_definitions(partition):
    facts = describe(partition)
    assert facts["clients"] == 2 and facts["samples"] == 6 and facts["unused"] == 1 and not facts["shared"]
    assert facts["size"] == {"min": 2, "median": 3.0, "max": 4, "gini": pytest.approx((2 + 2) / (2 * 2 * 6))}
    assert facts["classes"] == 3 and facts["classes_per_client"] == {"min": 1, "median": 1.5, "max": 2}
    assert facts["clients_without_class"] == [1, 1, 1]
    # labels of the six used samples: 3/6, 1/6, 2/6
    first, second = (abs(3 / 4 - 3 / 6) + abs(1 / 4 - 1 / 6) + 2 / 6) / 2, (3 / 6 + 1 / 6 + 1 - 2 / 6) / 2
    assert facts["label_distance"]["mean"] == pytest.approx((first + second) / 2)
    assert facts["label_distance"]["max"] == pytest.approx(max(first, second))


def test_the_figures_are_plain_json(partition, make_dataset):
    for one in (partition, PerClient(3).split(make_dataset([0, 1, 0, 1]), 5000, 0)):
        assert json.loads(json.dumps(describe(one))) == describe(one)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30))
def test_gini_is_half_the_mean_difference_over_the_mean(sizes):
    n = np.array(sizes, float)
    assert gini(np.array(sizes)) == pytest.approx(np.abs(n[:, None] - n).sum() / (2 * len(n) * n.sum()), abs=1e-12)


@given(st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any), min_size=1, max_size=6))
def test_label_distance_is_between_nothing_and_everything(rows):
    histogram = np.array(rows)
    distance = label_distances(histogram, histogram.sum(0))
    assert (distance >= 0).all() and (distance <= 1).all()
    assert label_distances(histogram, histogram[0])[0] == 0


def test_a_million_clients_are_described_by_a_thousand(make_dataset):
    facts = describe(PerClient(5).split(make_dataset(np.arange(100) % 4), 1_000_000, 0))
    assert facts["shared"] and facts["samples"] == 5_000_000 and facts["unused"] == 0
    assert facts["clients_looked_at"] == 1000 and max(facts["clients_without_class"]) < 1000


def test_sequences_are_described_without_labels(make_dataset):
    data = make_dataset(np.zeros(9))
    data = replace(data, y_train=data.y_train[:, None].repeat(1, 2), y_test=data.y_test[:, None].repeat(1, 2))
    one = Iid().split(data, 3, 0)
    assert "label_distance" not in describe(one) and describe(one)["samples"] == 9
    assert "each sample is a sequence" in shown(one) and ElementTree.fromstring(picture(one)) is not None


def shown(partition: Partition) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(card(partition))
    return console.export_text()


def test_the_card_shows_each_mix_in_proportion(partition):
    text = shown(partition)
    assert "0" * 30 + "1" * 10 in text and "2" * 40 in text
    assert "6, 1 unused" in text and "2 to 4, median 3" in text and "…" not in text


def test_the_card_of_many_clients_says_how_many_it_leaves_out(make_dataset):
    text = shown(Iid().split(make_dataset(np.arange(300) % 3), 100, 0))
    assert "24 of 100 clients are shown" in text and "\n    99 " in text


def test_the_picture_stacks_samples_in_scale_and_tells_them(partition):
    root = ElementTree.fromstring(picture(partition))
    bars = [r for r in root.iter(f"{SVG}rect") if r.find(f"{SVG}title") is not None]
    tall = {r.find(f"{SVG}title").text: float(r.get("height")) for r in bars}
    assert list(tall) == [
        "client 0: 4 samples, 3 of class 0",
        "client 0: 4 samples, 1 of class 1",
        "client 1: 2 samples, 2 of class 2",
    ]
    a, b, c = tall.values()
    assert a == pytest.approx(3 * b, rel=1e-3) and c == pytest.approx(2 * b, rel=1e-3)
    dots = {d.find(f"{SVG}title").text: float(d.get("r")) for d in root.iter(f"{SVG}circle")}
    assert len(dots) == 3
    assert dots["client 0: 3 samples of class 0"] ** 2 == pytest.approx(
        3 * dots["client 0: 1 samples of class 1"] ** 2, rel=1e-3
    )


def test_the_picture_stays_small_for_many_clients_and_reaches_for_nothing(make_dataset):
    text = picture(PerClient(20).split(make_dataset(np.arange(100) % 10), 1_000_000, 0))
    assert len(text) < 1_000_000 and "240 of 1,000,000 clients" in text
    assert text.count("http") == 1  # the name space


def test_marks_lie_inside_the_picture(make_dataset):
    root = ElementTree.fromstring(picture(Iid().split(make_dataset(np.arange(500) % 100), 7, 0)))
    width, height = float(root.get("width")), float(root.get("height"))
    for dot in root.iter(f"{SVG}circle"):
        assert 0 <= float(dot.get("cx")) <= width and 0 <= float(dot.get("cy")) <= height - 30
    for bar in root.iter(f"{SVG}rect"):
        assert float(bar.get("y", 0)) >= 0 and float(bar.get("x", 0)) + float(bar.get("width")) <= width


@pytest.mark.parametrize("classes", [1, 2, 10, 11, 62, 100])
def test_every_class_has_a_colour_of_its_own(classes):
    colors = [color(label, classes) for label in range(classes)]
    assert len(set(colors)) == classes and all(len(c) == 7 for c in colors)


@given(st.integers(1, 10**6), st.integers(2, 300))
def test_picked_clients_are_evenly_apart_with_both_ends(clients, most):
    some = picked(clients, most)
    assert len(some) == min(clients, most) and some[-1] == clients - 1 and some[0] == 0
    if len(some) > 1:
        gaps = [b - a for a, b in pairwise(some)]
        assert max(gaps) - min(gaps) <= 1
