"""Ids of a subnet in a precision."""

import re

import numpy as np
import pytest

from supernet.definition import define_supernet
from supernet.served_form import PRECISIONS, ServedForm


@pytest.mark.parametrize("variant", ["resnet20_cifar", "ofa_mobilenet_v3_w1.0", "minilm_l6"])
def test_an_id_says_subnet_and_precision(variant):
    rng = np.random.default_rng(0)
    space = define_supernet(variant).space
    for subnet_id in (space.sample(rng).subnet_id for _ in range(20)):
        forms = [ServedForm(subnet_id, precision) for precision in PRECISIONS]
        assert len({form.form_id for form in forms}) == len(PRECISIONS)
        for form in forms:
            assert re.fullmatch(r"[a-z0-9._-]+", form.form_id)
            assert ServedForm.parse(form.form_id) == form
            assert form.twin.form_id == subnet_id


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match="precision is 'int4', allowed fp32, int8"):
        _ = ServedForm("d1-r8", "int4").form_id
