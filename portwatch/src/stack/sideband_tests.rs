use std::process::{Command, Stdio};

use super::super::mapping::Backing;
use super::super::opener::Opener;
use super::*;

fn record(words: &[&[u8]]) -> Vec<u8> {
    words.concat()
}

#[test]
fn mapping_record_is_read() {
    let bytes = record(&[
        &7u32.to_ne_bytes(),
        &8u32.to_ne_bytes(),
        &0x40_0000u64.to_ne_bytes(),
        &0x3000u64.to_ne_bytes(),
        &0x1000u64.to_ne_bytes(),
        &254u32.to_ne_bytes(),
        &1u32.to_ne_bytes(),
        &4711u64.to_ne_bytes(),
        &3u64.to_ne_bytes(),
        &5u32.to_ne_bytes(),
        &2u32.to_ne_bytes(),
        b"/usr/bin/true\0\0\0",
        &99u64.to_ne_bytes(),
    ]);
    let (time, read) = parse(PERF_RECORD_MMAP2, 0, &bytes).unwrap();
    assert_eq!(time, 99);
    let Some(Record::Mapped { tgid: 7, mapping }) = read else { panic!("{read:?}") };
    assert_eq!((mapping.start, mapping.end, mapping.offset), (0x40_0000, 0x40_3000, 0x1000));
    let Backing::File { id, path, is_deleted: false, file_generation: 3 } = mapping.backing else {
        panic!("{mapping:?}")
    };
    assert_eq!(id, FileId { major: 254, minor: 1, inode: 4711 });
    assert_eq!(path.to_str(), Some("/usr/bin/true"));
    for cut in 0..bytes.len() {
        // Whatever a shorter one says, it is no panic.
        let _ = parse(PERF_RECORD_MMAP2, 0, &bytes[..cut]);
    }
}

#[test]
fn only_exec_and_whole_processes_count() {
    let ids =
        |a: u32, b: u32, c: u32| record(&[&a.to_ne_bytes(), &b.to_ne_bytes(), &c.to_ne_bytes(), &[0; 12]]);
    let read = |kind, misc, bytes: &[u8]| parse(kind, misc, bytes).unwrap().1;
    assert_eq!(
        read(PERF_RECORD_COMM, PERF_RECORD_MISC_COMM_EXEC, &ids(7, 7, 0)),
        Some(Record::Executed { tgid: 7 })
    );
    assert_eq!(read(PERF_RECORD_COMM, 0, &ids(7, 7, 0)), None);
    assert_eq!(read(PERF_RECORD_FORK, 0, &ids(8, 7, 8)), Some(Record::Forked { tgid: 8, parent: 7 }));
    assert_eq!(read(PERF_RECORD_FORK, 0, &ids(7, 7, 9)), None, "a thread");
    assert_eq!(read(PERF_RECORD_EXIT, 0, &ids(7, 1, 7)), Some(Record::Exited { tgid: 7 }));
    assert_eq!(read(PERF_RECORD_EXIT, 0, &ids(7, 1, 9)), None, "a thread");
    assert_eq!(read(PERF_RECORD_EXIT, 0, &ids(0, 1, 0)), None, "another PID namespace's");
}

#[test]
fn lists_of_cpus_are_read() {
    for (text, expected) in
        [("0-1", Some(vec![0, 1])), ("0,2-3", Some(vec![0, 2, 3])), ("3-1", None), ("x", None)]
    {
        assert_eq!(parse_cpus(text), expected, "{text}");
    }
}

/// `None`, and a word about it, where performance events are refused.
fn opened() -> Option<Sideband> {
    match Sideband::open() {
        Ok(sideband) => Some(sideband),
        Err(error) => {
            assert!(std::env::var_os("PORTWATCH_REQUIRE_KERNEL").is_none(), "{error:#}");
            eprintln!("SKIP: {error:#}");
            None
        }
    }
}

#[test]
fn mappings_of_300_processes_that_are_gone_are_all_known() {
    let Some(mut sideband) = opened() else { return };
    let mut maps = ProcessMaps::new(4096, Opener::default());
    maps.set_followed(true);
    let mut unknown = Vec::new();
    let mut children = Vec::new();
    for _ in 0..300 {
        let mut child = Command::new("/bin/true").stdin(Stdio::null()).spawn().unwrap();
        children.push(child.id());
        child.wait().unwrap();
    }
    sideband.drain(&mut maps);
    for tgid in children {
        let space = maps.find(tgid, 0, u64::MAX);
        let has = |name: &str| {
            space.as_ref().is_ok_and(|space| {
                space.mappings().iter().any(|mapping| match &mapping.backing {
                    Backing::File { path, .. } => path.to_string_lossy().contains(name),
                    Backing::Vdso => name == "[vdso]",
                    Backing::Anonymous(_) => false,
                })
            })
        };
        if !(has("/true") && has("libc.so") && has("ld-linux") && has("[vdso]")) {
            unknown.push((tgid, space));
        }
    }
    assert!(unknown.is_empty(), "{} of 300 processes are not known: {:?}", unknown.len(), unknown.first());
    assert_eq!(sideband.counters().malformed, 0);
}

#[test]
fn what_ran_before_an_exec_is_still_known_by_time() {
    let Some(mut sideband) = opened() else { return };
    let mut maps = ProcessMaps::new(4096, Opener::default());
    maps.set_followed(true);
    // The shell waits for its input, so that there is a time at which it surely is the program.
    let mut child = Command::new("/bin/sh")
        .args(["-c", "read line; exec sleep 0"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let tgid = child.id();
    let exe = format!("/proc/{tgid}/exe");
    let shell = std::fs::canonicalize("/bin/sh").unwrap();
    while fs::read_link(&exe).ok().as_ref() != Some(&shell) {
        std::thread::yield_now();
    }
    let during_shell = now_ns(ClockId::CLOCK_MONOTONIC);
    drop(child.stdin.take());
    child.wait().unwrap();
    sideband.drain(&mut maps);
    let program = |space: &super::super::process_maps::Space| -> Vec<String> {
        let paths = space.mappings().iter().filter_map(|mapping| match &mapping.backing {
            Backing::File { path, .. } => Some(path.to_string_lossy().into_owned()),
            _ => None,
        });
        paths.filter(|path| !path.contains("/lib")).collect()
    };
    let shell = shell.to_string_lossy().into_owned();
    let before = maps.find(tgid, 0, during_shell).unwrap();
    assert_eq!(program(&before), [shell]);
    let after = maps.find(tgid, 0, u64::MAX).unwrap();
    assert!(program(&after).iter().all(|path| path.ends_with("/sleep")), "{:?}", program(&after));
    assert_ne!(before.generation, after.generation);
}

#[test]
fn fork_without_exec_inherits_mappings_and_generation() {
    let Some(mut sideband) = opened() else { return };
    let mut maps = ProcessMaps::new(4096, Opener::default());
    maps.set_followed(true);
    // A subshell is a fork without exec; the parent was made after the start, so all of it comes from records.
    let output = Command::new("/bin/sh")
        .args(["-c", "echo $$; (read -r a </proc/self/stat; echo $a); :"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines();
    let parent: u32 = lines.next().unwrap().parse().unwrap();
    let child: u32 = lines.next().unwrap().split(' ').next().unwrap().parse().unwrap();
    assert_ne!(parent, child);
    sideband.drain(&mut maps);
    let (parent, child) = (maps.find(parent, 0, u64::MAX).unwrap(), maps.find(child, 0, u64::MAX).unwrap());
    assert_eq!(parent.generation, child.generation);
    assert_eq!(parent.mappings(), child.mappings());
    assert!(!child.mappings().is_empty());
}
