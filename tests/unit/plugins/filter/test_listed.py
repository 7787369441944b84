# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.edgesec.nanomq.plugins.filter.listed import listed


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["ann", " bob "], ["ann", "bob"]),
        (["ann, bob"], ["ann, bob"]),  # one name, with a comma
        ("ann, bob", ["ann", "bob"]),
        ("ann", ["ann"]),
        ("ann,,", ["ann"]),
        ("", []),
        ([], []),
    ],
)
def test_names(given, meant):
    assert listed(given) == meant


@pytest.mark.parametrize("given", [None, 3, {"ann": 1}, ["ann", 3], True], ids=repr)
def test_what_is_no_list_is_refused(given):
    with pytest.raises(AnsibleFilterError, match="neither a list of texts nor a text with commas"):
        listed(given)
