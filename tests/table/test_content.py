"""What a file holds, whatever its name says."""

from __future__ import annotations

import pytest

from vllm_relational import RelationalError
from vllm_relational.table.content import SIGNATURES, check_text, line_of_fault, wrong_encoding


def written(tmp_path, data):
    path = tmp_path / "table.csv"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("signature", SIGNATURES)
def test_other_formats_are_named_with_what_to_do(tmp_path, signature):
    found, fix = SIGNATURES[signature]
    with pytest.raises(RelationalError) as error:
        check_text(written(tmp_path, signature + b"rest of the file"))
    assert found in str(error.value) and fix in str(error.value)


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "a,b\n\u00e9,2\n"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16le", "utf-16be"])
def test_utf16_is_named_with_its_conversion(tmp_path, text, encoding):
    with pytest.raises(RelationalError, match=r"UTF-16.*iconv -f utf-16"):
        check_text(written(tmp_path, text.encode(encoding)))


@pytest.mark.parametrize(("data", "line"), [(b"a\n1\n\0\n", 3), (b"abc,d\0\n1,2\n", 1)])
def test_a_nul_byte_is_named_with_its_line(tmp_path, data, line):
    with pytest.raises(RelationalError, match=f"line {line} holds a NUL byte"):
        check_text(written(tmp_path, data))


@pytest.mark.parametrize("data", [b"a,b\n1,2\n", "\ufeffa\n\u00e9\n".encode(), b"a\n\xe9\n"])
def test_text_passes_whatever_its_bytes_mean(tmp_path, data):
    check_text(written(tmp_path, data))


def test_the_first_line_that_is_not_utf8_is_found(tmp_path):
    path = written(tmp_path, b"a\nfine\ncaf\xe9\n\xff\n")
    number, error = line_of_fault(path)
    assert number == 3 and "byte 0xe9 after 'caf'" in str(wrong_encoding(path, number, error))
    assert line_of_fault(written(tmp_path, "a\n\u00e9\n".encode())) is None
