"""Tables in and out: Arrow inside, one dictionary encoding of the used columns."""

from vllm_relational.table.encode import encode_columns
from vllm_relational.table.read import read_table
from vllm_relational.table.write import check_output, write_table

__all__ = ["check_output", "encode_columns", "read_table", "write_table"]
