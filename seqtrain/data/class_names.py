"""Class names that show as something else than they are."""

from seqtrain.data.files import shown
from seqtrain.data.label_table import LabelTable
from seqtrain.data.labels import LabelCodec
from seqtrain.errors import LabelError
from seqtrain.escaping import name_problem


def check_class_names(codec: LabelCodec, table: LabelTable) -> None:
    """Refuse a class whose name holds what cannot be seen or turns the reading direction.

    Two such names look alike, and pages, terminals and tables would show something else.

    Raises:
        LabelError: names the first place of the class, and the character.
    """
    for name in codec.classes:
        problem = name_problem(name)
        if problem is None:
            continue
        record = next(record for record, value in table.values.items() if name in value)
        file, line = table.place(record)
        raise LabelError(
            f"{shown(file)}: line {line}, record {record!r}: the class {name!r} holds {problem}, "
            "which does not show. Remove or replace it."
        )
