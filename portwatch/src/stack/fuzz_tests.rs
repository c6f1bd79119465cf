//! Real inputs, changed at random places, the same ones in every run.

use std::fs;
use std::time::{Duration, Instant};

use super::*;

/// Inputs per parser; fewer on a machine that is too slow for them.
const CASES: usize = 20_000;
const NAME_CASES: usize = 400;
const LIMIT: Duration = Duration::from_secs(12);

/// One input may take this long, on a machine that does other things as well.
const SLOW: Duration = Duration::from_secs(5);

/// SplitMix64: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Changes some bytes, numbers or the length. `hot` are ranges where most of the changes go.
fn mutate(bytes: &mut Vec<u8>, hot: &[(usize, usize)], random: &mut Random) {
    const NUMBERS: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];
    for _ in 0..1 + random.below(6) {
        let (start, length) = match random.below(4) {
            0 => (0, bytes.len()),
            _ => hot.get(random.below(hot.len())).copied().unwrap_or((0, bytes.len())),
        };
        let at = (start + random.below(length)).min(bytes.len().saturating_sub(1));
        let Some(byte) = bytes.get_mut(at) else { return };
        match random.below(8) {
            0..3 => *byte ^= 1 << random.below(8),
            3 => *byte = random.next() as u8,
            4 | 5 => {
                let width = [1, 2, 4, 8][random.below(4)];
                let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                let end = (at + width).min(bytes.len());
                bytes[at..end].copy_from_slice(&number[..end - at]);
            }
            6 => {
                let (from, count) = (random.below(bytes.len()), 1 + random.below(64));
                let piece = bytes[from..(from + count).min(bytes.len())].to_vec();
                let end = (at + piece.len()).min(bytes.len());
                bytes[at..end].copy_from_slice(&piece[..end - at]);
            }
            // Rarely, or there is little left to look at.
            _ if random.below(8) == 0 => bytes.truncate(at),
            _ => {}
        }
    }
}

/// Runs `parse` on as many changed copies of the seeds as time allows, at least a tenth of them.
fn run(seeds: &[Seed], cases: usize, mut parse: impl FnMut(&[u8])) {
    let mut random = Random(20);
    let began = Instant::now();
    for case in 0..cases {
        let (seed, hot) = &seeds[case % seeds.len()];
        let mut bytes = seed.clone();
        mutate(&mut bytes, hot, &mut random);
        let case_began = Instant::now();
        parse(&bytes);
        let took = case_began.elapsed();
        assert!(took < SLOW, "case {case} took {took:?}");
        if began.elapsed() > LIMIT && case > cases / 10 {
            eprintln!("{case} of {cases} cases in {LIMIT:?}");
            return;
        }
    }
}

/// Bytes, and where in them the structure is.
type Seed = (Vec<u8>, Vec<(usize, usize)>);

/// Small programs, with the ranges of their headers, tables of sections, and unwind tables.
fn programs() -> Vec<Seed> {
    let paths = ["/bin/true", "/bin/sleep", "/lib64/ld-linux-x86-64.so.2"];
    let seeds: Vec<Seed> = paths
        .iter()
        .filter_map(|path| {
            let bytes = fs::read(path).ok()?;
            let found = module(&bytes)?;
            let mut hot = vec![(0, 64), (64, 13 * 56), (bytes.len().saturating_sub(40 * 64), 40 * 64)];
            for name in [".eh_frame", ".eh_frame_hdr", ".note.gnu.build-id", ".dynsym", ".shstrtab"] {
                let section = found.section(name);
                hot.extend(section.map(|section| (section.offset as usize, section.bytes as usize)));
            }
            Some((bytes, hot))
        })
        .collect();
    assert!(!seeds.is_empty(), "none of {paths:?} is a program");
    seeds
}

#[test]
fn changed_programs_are_read_or_refused() {
    let seeds = programs();
    let mut read = 0;
    run(&seeds, CASES, |bytes| read += usize::from(elf(bytes)));
    assert!(read > CASES / 100, "only {read} were still programs: nothing was tried");
}

#[test]
fn changed_programs_are_named_or_not() {
    // One with debug information, as the symboliser reads it: the smallest there is.
    let source = "int main(int argc, char **argv) { return argc + (int)**argv; }\n";
    let directory = tempfile::tempdir().unwrap();
    let (program, path) = (directory.path().join("small"), directory.path().join("small.c"));
    fs::write(&path, source).unwrap();
    let mut seeds = programs();
    let built = std::process::Command::new("cc").args(["-g", "-o"]).args([&program, &path]).status();
    if built.is_ok_and(|status| status.success()) {
        let bytes = fs::read(&program).unwrap();
        let found = module(&bytes).unwrap();
        let debug = found.layout.sections.iter().filter(|s| s.name.starts_with(".debug_"));
        let hot = debug.map(|section| (section.offset as usize, section.bytes as usize)).collect();
        seeds = vec![(bytes, hot)];
    }
    run(&seeds, NAME_CASES, |bytes| {
        names(bytes);
    });
}

#[test]
fn changed_texts_and_records_are_read_as_far_as_they_go() {
    let maps = fs::read("/proc/self/maps").unwrap();
    run(&[(maps, Vec::new())], CASES / 4, super::maps);
    let map =
        b"7f00 40 JS:~f a.js:1\n7f40 20 JS:*g b.js:22\n0x1000 ff LazyCompile:h\nffffffffffffffff 2 end\n";
    run(&[(map.to_vec(), Vec::new())], CASES, super::perf_map);
    // A mapping, with a path and the time behind it.
    let mut mapped = vec![10, 0];
    mapped.extend([7, 0, 0, 0, 7, 0, 0, 0]);
    mapped.extend((0..7u64).flat_map(u64::to_le_bytes));
    mapped.extend(b"/usr/bin/true\0\0\0");
    mapped.extend(99u64.to_le_bytes());
    run(&[(mapped, Vec::new())], CASES, super::record);
}
