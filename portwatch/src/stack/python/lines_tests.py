# Prints, for every code object of some modules of the standard library, its table of lines and what Python itself makes
# of it: `version`, then a line each: first line, bytes of code, table, and `start:end:line` of every range.
import dis, glob, os, sys

def objects(code):
    yield code
    for const in code.co_consts:
        if isinstance(const, type(code)):
            yield from objects(const)

def ranges(code):
    if sys.version_info >= (3, 11):
        for unit, place in enumerate(code.co_positions()):
            yield 2 * unit, 2 * unit + 2, place[0]
    elif sys.version_info >= (3, 10):
        yield from code.co_lines()
    else:
        starts = list(dis.findlinestarts(code)) + [(len(code.co_code), None)]
        for (start, line), (end, _) in zip(starts, starts[1:]):
            yield start, end, line

print("%d.%d" % sys.version_info[:2])
for path in sorted(glob.glob(os.path.join(os.path.dirname(os.__file__), "*.py")))[:int(sys.argv[1])]:
    with open(path, "rb") as file:
        try:
            module = compile(file.read(), path, "exec")
        except SyntaxError:
            continue
    for code in objects(module):
        table = code.co_linetable if sys.version_info >= (3, 10) else code.co_lnotab
        merged = []
        for start, end, line in ranges(code):
            if merged and merged[-1][2] == line and merged[-1][1] == start:
                merged[-1][1] = end
            else:
                merged.append([start, end, line])
        print(code.co_firstlineno, table.hex() or "-",
              " ".join("%d:%d:%s" % (s, e, "" if l is None else l) for s, e, l in merged))
