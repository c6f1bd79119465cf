use super::super::mapping::{Backing, FileId, MAPPINGS_MAX};
use super::*;

fn mapping(start: u64, end: u64, offset: u64, inode: u64) -> Mapping {
    let id = FileId { major: 8, minor: 1, inode };
    Mapping::new(start, end, offset, (id, 0), b"/lib/x.so").unwrap()
}

fn maps(capacity: usize) -> ProcessMaps {
    let mut maps = ProcessMaps::new(capacity, Opener::default());
    maps.set_followed(true);
    maps
}

/// A number that no process has: the kernel's limit is lower.
const NOBODY: u32 = 0x7000_0000;

#[test]
fn lines_of_proc_maps_are_read_and_all_others_skipped() {
    let text = b"00400000-00452000 r-xp 00001000 08:02 173521      /usr/bin/dbus daemon\n\
        00651000-00652000 r--p 00051000 08:02 173521      /usr/bin/dbus-daemon\n\
        7f0000000000-7f0000001000 r-xp 00000000 00:00 0 \n\
        7f0000002000-7f0000003000 rwxp 00000000 00:2d 77 /tmp/a\\012b (deleted)\n\
        7ffd0a3fd000-7ffd0a3ff000 r-xp 00000000 00:00 0                          [vdso]\n\
        rubbish\n7f-1 r-xp 0 0:0 0\n";
    let read = parse(text);
    assert_eq!(read.len(), 4, "{read:?}");
    assert_eq!((read[0].start, read[0].end, read[0].offset), (0x40_0000, 0x45_2000, 0x1000));
    let path = |at: usize| match &read[at].backing {
        Backing::File { id, path, is_deleted, .. } => {
            (id.inode, path.to_str().unwrap().to_owned(), *is_deleted)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(path(0), (173_521, "/usr/bin/dbus daemon".to_owned(), false));
    assert!(matches!(&read[1].backing, Backing::Anonymous(name) if name.is_empty()));
    assert_eq!(path(2), (77, "/tmp/a\nb".to_owned(), true));
    assert_eq!(read[3].backing, Backing::Vdso);
    for cut in 0..text.len() {
        assert!(parse(&text[..cut]).len() <= 5);
    }
}

#[test]
fn code_of_another_file_at_the_same_place_is_another_generation() {
    let mut maps = maps(16);
    maps.executed(NOBODY, 1);
    maps.mapped(NOBODY, mapping(0x1000, 0x5000, 0, 1), 2);
    let first = maps.find(NOBODY, 0, u64::MAX).unwrap();
    // The same again, as after mprotect.
    maps.mapped(NOBODY, mapping(0x2000, 0x3000, 0x1000, 1), 2);
    let same = maps.find(NOBODY, 0, u64::MAX).unwrap();
    assert_eq!(same.generation, first.generation);
    // dlclose, then another library there.
    maps.mapped(NOBODY, mapping(0x2000, 0x3000, 0, 2), 500);
    let other = maps.find(NOBODY, 0, u64::MAX).unwrap();
    assert_ne!(other.generation, first.generation);
    let inode_at = |address| match other.find(address).map(|mapping| &mapping.backing) {
        Some(Backing::File { id, .. }) => Some(id.inode),
        _ => None,
    };
    // What sticks out on both sides is still the former.
    let found = [0xfff, 0x1000, 0x1fff, 0x2000, 0x2fff, 0x3000, 0x4fff, 0x5000].map(inode_at);
    assert_eq!(found, [None, Some(1), Some(1), Some(2), Some(2), Some(1), Some(1), None]);
    assert_eq!(other.find(0x3000).map(|mapping| mapping.offset), Some(0x2000));
    // A stack from before is still read as what it was taken from, for a while.
    let before = maps.find(NOBODY, 0, 499).unwrap();
    assert_eq!((before.generation, before.mappings()), (same.generation, same.mappings()));
    maps.expire(500 + KEEP_AFTER_EXIT_NS);
    assert_eq!(maps.find(NOBODY, 0, 499).unwrap().generation, other.generation);
    assert_eq!(maps.take_replaced(), [(NOBODY, 500)]);
    // Something elsewhere changes nothing for what was learned.
    maps.mapped(NOBODY, mapping(0x9000, 0xa000, 0, 3), 2);
    assert_eq!(maps.find(NOBODY, 0, u64::MAX).unwrap().generation, other.generation);
}

#[test]
fn reused_number_is_another_process() {
    let second = 1_000_000_000;
    let mut maps = maps(16);
    for (start, inode) in [(5 * second, 1), (50 * second, 2)] {
        maps.forked(NOBODY, NOBODY + 1, start, start);
        maps.mapped(NOBODY, mapping(0x1000, 0x2000, 0, inode), 2);
        maps.exited(NOBODY, start + second);
    }
    for (start, inode) in [(5 * second, 1), (50 * second + 7_000_000, 2)] {
        let space = maps.find(NOBODY, start, u64::MAX).unwrap();
        assert_eq!(space.mappings(), [mapping(0x1000, 0x2000, 0, inode)]);
    }
    assert_eq!(maps.find(NOBODY, 20 * second, u64::MAX).unwrap_err(), Missing::Gone);
    let own = std::process::id();
    assert_eq!(maps.find(own, 1, u64::MAX).unwrap_err(), Missing::Reused);
    assert_eq!(maps.counters().missing, 2);
}

#[test]
fn what_ended_is_kept_for_ten_seconds() {
    let mut maps = maps(16);
    maps.executed(NOBODY, 1);
    maps.mapped(NOBODY, mapping(0x1000, 0x2000, 0, 1), 2);
    maps.exited(NOBODY, 100);
    maps.expire(100 + KEEP_AFTER_EXIT_NS - 1);
    assert!(maps.find(NOBODY, 0, u64::MAX).is_ok());
    maps.expire(100 + KEEP_AFTER_EXIT_NS);
    assert_eq!(maps.find(NOBODY, 0, u64::MAX).unwrap_err(), Missing::Gone);
    assert_eq!(maps.count, 0);
}

#[test]
fn full_table_forgets_what_was_not_asked_for() {
    let mut maps = maps(64);
    for at in 0..1000 {
        maps.executed(NOBODY + at, 1);
        maps.mapped(NOBODY + at, mapping(0x1000, 0x2000, 0, 1), 2);
        // The first is in use all the time.
        maps.find(NOBODY, 0, u64::MAX).unwrap();
        assert!(maps.count <= 64);
        assert_eq!(maps.count, maps.spaces.values().map(Vec::len).sum::<usize>());
    }
    assert_eq!(maps.counters().evicted, 1000 - maps.count as u64);
}

#[test]
fn process_with_too_many_mappings_is_cut_and_counted() {
    let mut maps = maps(4);
    maps.executed(NOBODY, 1);
    // Laid on top of each other from above, so that each stays in part.
    for at in 0..MAPPINGS_MAX as u64 + 10 {
        maps.mapped(NOBODY, mapping(0x1000 * (2 * at + 1), 0x1000 * (2 * at + 2), 0, 1), 2);
    }
    assert_eq!(maps.find(NOBODY, 0, u64::MAX).unwrap().mappings().len(), MAPPINGS_MAX);
    assert_eq!(maps.counters().mappings_dropped, 10);
}

#[test]
fn code_compiled_at_run_time_gives_way_to_a_file_and_the_other_way_round() {
    let mut maps = maps(16);
    maps.executed(NOBODY, 1);
    let anonymous =
        |start, end| Mapping { start, end, offset: start, backing: Backing::Anonymous("".into()) };
    maps.mapped(NOBODY, anonymous(0x1000, 0x4000), 2);
    let mut generations = vec![maps.find(NOBODY, 0, u64::MAX).unwrap().generation];
    let mut step = |maps: &mut ProcessMaps, new: Mapping, time| {
        maps.mapped(NOBODY, new, time);
        generations.push(maps.find(NOBODY, 0, u64::MAX).unwrap().generation);
        (maps.take_replaced().len(), generations.iter().collect::<std::collections::HashSet<_>>().len())
    };
    // A compiler that makes its pages writable and executable again, all the time.
    assert_eq!(step(&mut maps, anonymous(0x2000, 0x3000), 3), (0, 1));
    // It was unmapped, which nobody tells; the library that stands there now says so.
    assert_eq!(step(&mut maps, mapping(0x2000, 0x3000, 0, 1), 4), (1, 2));
    let now = maps.find(NOBODY, 0, u64::MAX).unwrap();
    assert!(matches!(now.find(0x2000).unwrap().backing, Backing::File { .. }));
    assert_eq!(step(&mut maps, anonymous(0x2000, 0x3000), 5), (1, 3));
    let was = maps.find(NOBODY, 0, 4).unwrap();
    assert!(matches!(was.find(0x2000).unwrap().backing, Backing::File { .. }));
}

#[test]
fn process_that_replaces_its_code_all_the_time_is_bounded() {
    let mut maps = maps(256);
    maps.executed(NOBODY + 1, 1);
    maps.executed(NOBODY, 1);
    for at in 0..1000 {
        maps.mapped(NOBODY, mapping(0x1000, 0x2000, 0, at), at + 2);
        assert_eq!(maps.count, maps.spaces.values().map(Vec::len).sum::<usize>());
        assert!(maps.count <= FORMERS_MAX + 3);
    }
    assert_eq!(maps.counters().evicted, 0);
    // What is still remembered is right, and what is not says so.
    let inode = |maps: &mut ProcessMaps, time| {
        let space = maps.find(NOBODY, 0, time)?;
        match &space.find(0x1000).unwrap().backing {
            Backing::File { id, .. } => Ok(id.inode),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(inode(&mut maps, 990), Ok(988));
    assert_eq!(inode(&mut maps, 500), Err(Missing::Forgotten));
}
