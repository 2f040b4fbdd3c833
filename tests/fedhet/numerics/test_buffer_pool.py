"""Large results are in reused memory, which is never reused while there is a reference to it."""

from __future__ import annotations

import os

import torch

from fedhet.numerics import tree
from fedhet.numerics.buffer_pool import KEPT, LEAST, Shelf
from fedhet.numerics.tree import FlatTree, Leaf, Schema

SIZE = LEAST // 4


def test_a_block_comes_back_only_when_the_last_view_of_it_is_gone() -> None:
    shelf = Shelf()
    first = shelf.empty(SIZE)
    where, view = first.data_ptr(), first[5:10].view(5, 1)
    view.fill_(7.0)
    del first
    second = shelf.empty(SIZE)
    second.zero_()
    assert second.data_ptr() != where and view.sum() == 35.0
    del view
    assert shelf.empty(SIZE).data_ptr() == where


def test_blocks_of_other_sizes_are_not_lent_and_few_are_kept() -> None:
    shelf = Shelf()
    tensors = [shelf.empty(SIZE + i) for i in range(KEPT + 3)]
    assert len({t.data_ptr() for t in tensors}) == KEPT + 3
    del tensors
    assert len(shelf._free) == KEPT
    assert len(shelf.empty(SIZE + 99)) == SIZE + 99


def test_small_results_are_left_to_the_allocator() -> None:
    shelf = Shelf()
    shelf.empty(SIZE - 1)
    assert not shelf._free


def test_a_forked_process_has_memory_of_its_own() -> None:
    shared = Shelf().empty(SIZE)
    shared.fill_(1.0)
    child = os.fork()
    if child == 0:
        shared.fill_(2.0)
        os._exit(0)
    os.waitpid(child, 0)
    assert float(shared.min()) == float(shared.max()) == 1.0


def test_sums_that_follow_each_other_keep_their_numbers() -> None:
    schema = Schema((("w", Leaf((SIZE,))),))
    ones = FlatTree(schema, torch.ones(SIZE))
    twice = tree.weighted_sum([ones, ones], [1.0, 1.0])
    thrice = tree.add(twice, ones)
    assert (float(twice["w"].max()), float(thrice["w"].max())) == (2.0, 3.0)
    del twice
    five = tree.weighted_sum([thrice, ones], [1.0, 2.0])
    assert (float(thrice["w"].min()), float(five["w"].min())) == (3.0, 5.0)
