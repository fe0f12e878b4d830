"""The live cells of part `mixed`: what they send, and how they judge it."""

from __future__ import annotations

import asyncio
import io
import json

import pytest
from PIL import Image

from serve.bench.mixed import live
from serve.bench.mixed.image_overload import IMAGE_SIZE, highest_rate, image_files
from serve.bench.mixed.live import CELLS
from serve.bench.mixed.timed_server import SHAPE, config_of, in_time, on_time_share


@pytest.mark.alone
def test_a_query_is_in_time_from_its_intended_send():
    """One that is held up by the sender itself is late, too."""

    async def ask(index: int) -> bool:
        await asyncio.sleep(0.15 if index % 4 == 0 else 0.0)
        return index % 4 != 1

    share = asyncio.run(in_time(ask, rate_qps=100, duration_s=0.4, slo_s=0.1))
    assert share == pytest.approx(0.5, abs=0.1)


def test_a_servers_own_share_counts_every_model_and_every_end():
    text = """# TYPE supernet_queries counter
supernet_queries_total{model="a",status="on_time",reason=""} 7
supernet_queries_total{model="a",status="late",reason=""} 1
supernet_queries_total{model="b",status="rejected",reason="queue_full"} 2
"""
    assert on_time_share(text) == 0.7
    with pytest.raises(ValueError, match="no query"):
        on_time_share("")


def test_files_are_jpegs_of_the_named_size():
    first, second = image_files(2)
    assert first != second
    with Image.open(io.BytesIO(first)) as image:
        assert (image.format, image.size) == ("JPEG", IMAGE_SIZE)


@pytest.mark.parametrize("true_qps", [1.5, 7.0, 16.0, 23.0, 103.0])
@pytest.mark.parametrize("growth", [1.2, 1.6])
def test_the_highest_rate_is_known_to_a_few_per_cent(true_qps: float, growth: float):
    tried: list[float] = []

    def serves(rate_qps: float) -> bool:
        tried.append(rate_qps)
        return rate_qps <= true_qps

    found = highest_rate(serves, 16.0, growth=growth)
    assert found <= true_qps < 1.04 * found
    assert len(tried) <= 22


def test_a_server_that_serves_nothing_has_the_least_rate():
    assert highest_rate(lambda _: False, 16.0, growth=1.6) == 1.0


def test_one_of_the_json_requests_is_refused_and_the_other_just_passes():
    limit = config_of().max_json_bytes
    large = live._json_request(SHAPE, 16)
    below = live._json_request(live._BELOW_SHAPE, 1)
    assert len(large) > 10 * limit
    assert 0.9 * limit < len(below) <= limit
    assert json.loads(below)["inputs"][0]["shape"] == [1, *live._BELOW_SHAPE]


@pytest.mark.slow
@pytest.mark.alone
def test_no_client_of_a_sick_replica_is_lost():
    (found,) = CELLS["sick_replica"](print)
    assert (found.name, found.value) == ("sick_replica/clients_lost", 0)
