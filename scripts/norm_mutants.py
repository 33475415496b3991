"""What ``mutate_norms.py`` changes: one operator, number or decorator at a time, by Cosmic Ray."""

import ast
import difflib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# One or two replacements per operator. Cosmic Ray's full list swaps each for ten others, which
# differ from these in nothing that a test could tell. ``|`` stands in annotations alone.
OPERATORS = [
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Mul_Add")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Div_Mul", "Mod_Mul", "Pow_Mul")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Eq_NotEq", "NotEq_Eq", "Lt_LtE", "LtE_Lt")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Gt_GtE", "GtE_Gt", "Is_IsNot", "IsNot_Is")),
    *(f"ReplaceUnaryOperator_{pair}" for pair in ("Delete_USub", "Delete_Invert", "Delete_Not")),
    *("NumberReplacer", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "AddNot"),
    *("ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceContinueWithBreak", "ReplaceBreakWithContinue"),
    *("RemoveDecorator", "ZeroIterationForLoop"),
]


class Mutant(NamedTuple):
    """One change at one place."""

    module: str
    operator: str
    line: int
    source: str
    diff: list[str]
    key: str


def mutants(path: Path) -> Iterator[Mutant]:
    """Those of a file, without what says the same as another: ``not a is b``, ``a is not b``."""
    from cosmic_ray.ast import ast_nodes, get_ast_from_path
    from cosmic_ray.plugins import get_operator

    tree = get_ast_from_path(path)
    seen: set[str] = set()
    for name in OPERATORS:
        operator = get_operator(f"core/{name}")()
        places = [
            start for node in ast_nodes(tree) for start, _ in operator.mutation_positions(node)
        ]
        for occurrence, (line, _) in enumerate(places):
            mutant = _mutant(path, name, occurrence, line)
            meaning = _meaning(mutant.source)
            if meaning is not None and meaning not in seen:
                seen.add(meaning)
                yield mutant


def found_again(path: Path, result: dict) -> Mutant | None:
    """The mutant of a result; ``None`` if its line is not there any more, or has moved far."""
    occurrence = int(result["key"].split(":")[2])
    for near in sorted(
        range(max(occurrence - 4, 0), occurrence + 5), key=lambda n: n != occurrence
    ):
        mutant = _mutant(path, result["operator"], near, result["line"])
        if mutant.diff == result["diff"]:
            return mutant._replace(key=result["key"])
    return None


def _mutant(path: Path, name: str, occurrence: int, line: int) -> Mutant:
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    original = path.read_text()
    source = mutate_code(original, get_operator(f"core/{name}")(), occurrence) or original
    changes = list(difflib.unified_diff(original.splitlines(), source.splitlines(), n=0))
    diff = [line for line in changes if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    if changes:
        line = int(changes[2].split()[1].lstrip("-").split(",")[0])
    key = f"{path.stem}:{name}:{occurrence}:{zlib.crc32(chr(10).join(diff).encode()):08x}"
    return Mutant(path.stem, name, line, source, diff, key)


def _meaning(source: str | None) -> str | None:
    """The syntax tree; ``None`` for what is no Python, as a lone ``*`` replaced in a signature."""
    try:
        return ast.dump(_Negations().visit(ast.parse(source or "")))
    except SyntaxError:
        return None


class _Negations(ast.NodeTransformer):
    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        opposites = {ast.Is: ast.IsNot, ast.Eq: ast.NotEq, ast.In: ast.NotIn}
        opposites |= {other: one for one, other in opposites.items()}
        inner = node.operand
        if isinstance(node.op, ast.Not) and isinstance(inner, ast.Compare) and len(inner.ops) == 1:
            opposite = opposites.get(type(inner.ops[0]))
            if opposite is not None:
                return ast.Compare(inner.left, [opposite()], inner.comparators)
        return node
