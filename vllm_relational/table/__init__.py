"""Tables in and out: Arrow inside, one dictionary encoding of the used columns."""

from vllm_relational.table.encode import encode_columns, fingerprint, nulls_as_values
from vllm_relational.table.read import read_table
from vllm_relational.table.write import check_output, write_table

__all__ = ["check_output", "encode_columns", "fingerprint", "nulls_as_values", "read_table", "write_table"]
