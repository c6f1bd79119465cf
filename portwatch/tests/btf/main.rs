//! Structure offsets: real kernels of five generations, hostile bytes, and a second opinion from bpftool.
//!
//! `tests/data/btf` holds small copies of real kernels' types, see its README for how they are made.

#![expect(
    clippy::unwrap_used,
    clippy::type_complexity,
    reason = "a test may panic, and its tables need no names for their types"
)]

mod bpftool;
mod minimise;
mod writer;

use std::{fmt::Write as _, fs, path::Path, path::PathBuf};

use portwatch::kernel::{
    btf::{self, Absent, Btf, MemberKind},
    offsets::{self, ROWS, Reason},
};
use portwatch_common::config::{ABSENT, Offsets};
use writer::Writer;

const KERNELS: [&str; 4] = ["5.10.223", "6.1.176", "6.12.107", "7.2.13"];

/// Structures whose offsets the table below pins beyond those that are looked up.
const MORE_STRUCTURES: &[&str] = &["inet_connection_sock", "inet_bind_bucket", "nsproxy"];

/// In the small copies for [`Btf::has_func`]; the last two are not in every kernel.
const FUNCTIONS: &[&str] = &[
    "inet_hash_connect",
    "inet6_hash_connect",
    "inet_csk_get_port",
    "inet_twsk_alloc",
    "inet_twsk_kill",
    "inet_put_port",
    "inet_sock_destruct",
    "inet_release",
    "tcp_v4_connect",
    "tcp_v6_connect",
    "inet_twsk_purge",
    "__inet_hash_connect",
    "inet_twsk_hashdance",
    "inet_twsk_hashdance_schedule",
];

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/btf")
}

fn stored_bytes(kernel: &str) -> Vec<u8> {
    let file = data().join(format!("{kernel}.btf.zst"));
    zstd::decode_all(fs::File::open(&file).unwrap()).unwrap()
}

fn stored(kernel: &str) -> Btf {
    Btf::parse(stored_bytes(kernel)).unwrap()
}

/// Same on every kernel seen.
const SAME: &[(&str, &str, u32)] = &[
    ("sock_common", "skc_daddr", 0),
    ("sock_common", "skc_rcv_saddr", 4),
    ("sock_common", "skc_hash", 8),
    ("sock_common", "skc_dport", 12),
    ("sock_common", "skc_num", 14),
    ("sock_common", "skc_family", 16),
    ("sock_common", "skc_state", 18),
    ("sock_common", "skc_bound_dev_if", 20),
    ("sock_common", "skc_prot", 40),
    ("sock_common", "skc_net", 48),
    ("sock_common", "skc_v6_daddr", 56),
    ("sock_common", "skc_v6_rcv_saddr", 72),
    ("sock_common", "skc_cookie", 88),
    ("sock_common", "skc_refcnt", 128),
    ("inet_timewait_sock", "tw_mark", 136),
    ("inet_timewait_sock", "tw_substate", 140),
    ("inet_timewait_sock", "tw_sport", 142),
    ("inet_timewait_sock", "tw_priority", 152),
    ("inet_timewait_sock", "tw_timer", 160),
    ("inet_timewait_sock", "tw_tb", 200),
    ("inet_bind_bucket", "port", 12),
    ("inet_bind_bucket", "fastreuse", 14),
    ("inet_bind_bucket", "fastreuseport", 15),
    ("socket", "sk", 24),
    ("nsproxy", "net_ns", 40),
    ("inet_timewait_death_row", "sysctl_max_tw_buckets", 72),
];

/// In the order of [`KERNELS`].
const DIFFERS: &[(&str, &str, [Result<u32, Absent>; 4])] = {
    use Absent::{Bitfield, NoMember};
    &[
        ("net", "ns.inum", [Ok(136), Ok(144), Ok(136), Ok(280)]),
        ("net", "ipv4.ip_local_ports.range", [Ok(900), Ok(1060), Ok(1180), Ok(1476)]),
        ("net", "ipv4.sysctl_tcp_tw_reuse", [Ok(991), Ok(1135), Ok(1239), Ok(1543)]),
        ("net", "ipv4.tcp_death_row", [Ok(1152), Ok(704), Ok(832), Ok(1088)]),
        ("inet_sock", "inet_sport", [Ok(776), Ok(804), Ok(798), Ok(830)]),
        ("inet_sock", "local_port_range", [Err(NoMember), Ok(984), Ok(832), Ok(864)]),
        ("sock", "sk_protocol", [Ok(540), Ok(516), Ok(574), Ok(540)]),
        ("sock", "sk_type", [Ok(538), Ok(514), Ok(572), Ok(542)]),
        ("sock", "sk_socket", [Ok(640), Ok(624), Ok(288), Ok(288)]),
        ("sock", "sk_uid", [Ok(584), Ok(560), Ok(612), Ok(536)]),
        ("sock", "sk_userlocks", [Err(Bitfield), Err(Bitfield), Ok(243), Ok(243)]),
        ("inet_connection_sock", "icsk_bind_hash", [Ok(1048), Ok(1072), Ok(1072), Ok(1120)]),
        ("task_struct", "start_boottime", [Ok(2544), Ok(2784), Ok(2784), Ok(3160)]),
        ("inet_timewait_sock", "tw_entry_stamp", [Err(NoMember), Err(NoMember), Err(NoMember), Ok(156)]),
        ("inet_timewait_death_row", "tw_count", [Ok(0), Err(NoMember), Err(NoMember), Err(NoMember)]),
        ("inet_timewait_death_row", "tw_refcount", [Err(NoMember), Ok(0), Ok(0), Ok(0)]),
    ]
};

#[test]
fn offsets_are_those_of_the_stored_kernels() {
    for (index, kernel) in KERNELS.into_iter().enumerate() {
        let btf = stored(kernel);
        for &(structure, path, offset) in SAME {
            assert_eq!(btf.byte_offset(structure, path), Ok(offset), "{kernel} {structure}.{path}");
        }
        for &(structure, path, expected) in DIFFERS {
            assert_eq!(btf.byte_offset(structure, path), expected[index], "{kernel} {structure}.{path}");
        }
        assert_eq!(btf.struct_size("sock_common"), Some(136), "{kernel}");
    }
}

#[test]
fn every_field_of_the_offsets_is_resolved_on_every_stored_kernel() {
    assert_eq!(
        (ROWS.len() + 2) * size_of::<u32>(),
        size_of::<Offsets>(),
        "a field of `Offsets` has no row; `upid_size` and `death_row_bias` are no members"
    );
    for kernel in KERNELS {
        let resolved = offsets::resolve(&stored(kernel));
        assert_eq!(resolved.missing, [], "{kernel}");
        let absent: Vec<_> =
            ROWS.iter().filter(|row| row.offset(&resolved.offsets) == ABSENT).map(|row| row.field).collect();
        let other_way = if kernel == "5.10.223" { "cgroup_ancestors" } else { "cgroup_ancestor_ids" };
        assert_eq!(absent, [other_way], "{kernel}");
        assert_eq!(resolved.offsets.upid_size, 16, "{kernel}");
        assert_eq!(resolved.offsets.death_row_bias, u32::from(kernel != "5.10.223"), "{kernel}");
    }
}

#[test]
fn resolved_offsets_are_the_stored_answers() {
    assert_eq!(table(&KERNELS.map(stored)), fs::read_to_string(data().join("offsets.tsv")).unwrap());
}

fn table(kernels: &[Btf; 4]) -> String {
    let mut text = format!("field\t{}\n", KERNELS.join("\t"));
    let resolved = kernels.each_ref().map(|btf| offsets::resolve(btf).offsets);
    for row in ROWS {
        text.push_str(row.field);
        for offsets in &resolved {
            match row.offset(offsets) {
                ABSENT => text.push_str("\t-"),
                offset => write!(text, "\t{offset}").unwrap(),
            }
        }
        text.push('\n');
    }
    text
}

#[test]
fn functions_are_found_by_name_with_their_parameters() {
    for kernel in KERNELS {
        let btf = stored(kernel);
        for name in &FUNCTIONS[..12] {
            assert!(btf.has_func(name), "{kernel} {name}");
        }
        for name in ["inet_csk_find_open_port", "inet_hash_connec", "inet_hash_connect2", ""] {
            assert!(!btf.has_func(name), "{kernel} {name}");
        }
        let is_old = ["5.10.223", "6.1.176"].contains(&kernel);
        assert_eq!(btf.has_func("inet_twsk_hashdance"), is_old, "{kernel}");
        assert_eq!(btf.has_func("inet_twsk_hashdance_schedule"), !is_old, "{kernel}");
    }
    assert_eq!(KERNELS.map(|kernel| stored(kernel).func_params("inet_twsk_purge")), [2, 1, 1, 1].map(Some));
    let connect = KERNELS.map(|kernel| stored(kernel).func_params("__inet_hash_connect"));
    assert_eq!(connect, [4, 4, 4, 5].map(Some));
}

#[test]
fn member_kinds_tell_embedded_from_pointer_from_bitfield() {
    let btf = stored("5.10.223");
    let kind = |structure, path| btf.member(structure, path).map(|member| (member.kind, member.size));
    assert_eq!(kind("sock", "sk_socket"), Ok((MemberKind::Pointer, Some(8))));
    assert_eq!(kind("net", "ipv4.tcp_death_row"), Ok((MemberKind::Composite, Some(128))));
    assert_eq!(kind("sock", "sk_userlocks"), Ok((MemberKind::Bitfield { bits: 4 }, None)));
    assert_eq!(kind("sock_common", "skc_state"), Ok((MemberKind::Scalar, Some(1))));
    assert_eq!(kind("cgroup", "ancestor_ids"), Ok((MemberKind::Array, None)));
    assert_eq!(kind("sock", "sk_socket.sk"), Err(Absent::NotEmbedded));
    assert_eq!(kind("sock", "sk_err.x"), Err(Absent::NotEmbedded));
    assert_eq!(kind("sock", "no_such"), Err(Absent::NoMember));
    assert_eq!(kind("sock", ""), Err(Absent::NoMember));
    assert_eq!(kind("sock", "sk_err."), Err(Absent::NotEmbedded));
    assert_eq!(kind("no_such", "x"), Err(Absent::NoStruct));
}

#[test]
fn running_kernel_agrees_with_bpftool() {
    let path = Path::new(btf::VMLINUX);
    if !path.exists() {
        return skip("running_kernel_agrees_with_bpftool", "this kernel shows no BTF");
    }
    let Some(dump) = bpftool::Dump::of(path) else {
        return skip("running_kernel_agrees_with_bpftool", "bpftool is not installed");
    };
    agrees(&Btf::from_running_kernel().unwrap(), &dump);
}

/// Every member and function portwatch asks for, against bpftool's dump of the same BTF.
fn agrees(btf: &Btf, dump: &bpftool::Dump) {
    let offsets = offsets::resolve(btf).offsets;
    let mut compared = 0;
    for row in ROWS {
        let ours = row.offset(&offsets);
        let theirs = row.paths.iter().find_map(|path| dump.bit_offset(row.structure, path));
        compared += usize::from(ours != ABSENT && theirs == Some(ours * 8));
        if ours != ABSENT || theirs.is_some() {
            assert_eq!(Some(ours.wrapping_mul(8)), theirs, "{}.{}", row.structure, row.field);
        }
    }
    assert!(compared + 5 > ROWS.len(), "only {compared} of {} members were found", ROWS.len());
    assert_eq!(btf.struct_size("upid"), dump.struct_size("upid"));
    let more = SAME.iter().map(|row| (row.0, row.1)).chain(DIFFERS.iter().map(|row| (row.0, row.1)));
    for (structure, path) in more {
        let ours = btf.member(structure, path).ok().map(|member| member.bit_offset);
        assert_eq!(ours, dump.bit_offset(structure, path), "{structure}.{path}");
    }
    for name in FUNCTIONS.iter().chain(&["inet_csk_find_open_port"]) {
        assert_eq!(btf.has_func(name), dump.has_func(name), "{name}");
    }
}

/// A kernel that changed a member's form: missing, and said so by name.
#[test]
fn changed_member_is_absent_and_named() {
    let mut writer = Writer::default();
    let u8_ = writer.int("unsigned char", 1);
    let pointer = writer.add("", 2, 0, 0, &[]);
    let ipv4 = writer.structure("netns_ipv4", 8, &[("tcp_death_row", pointer, 0)]);
    writer.structure("net", 8, &[("ipv4", ipv4, 0)]);
    writer.structure("inet_timewait_sock", 8, &[("tw_substate", u8_, 4)]);
    writer.structure("sock", 8, &[("sk_err", u8_, 0)]);
    let resolved = offsets::resolve(&Btf::parse(writer.finish(24)).unwrap());

    for (field, member, why) in [
        ("net_death_row", "net.ipv4.tcp_death_row", "it is no longer an embedded structure"),
        ("tw_substate", "inet_timewait_sock.tw_substate", "it is a bit-field"),
        ("sk_err", "sock.sk_err", "it is no longer 4 bytes wide"),
        ("sk_protocol", "sock.sk_protocol", "the structure has no such member"),
        ("task_stack", "task_struct.stack", "this kernel has no such structure"),
        ("net_count", "net.ns.__ns_ref", "the structure has no such member"),
        ("upid_size", "upid", "this kernel has no such structure"),
    ] {
        let missing = resolved.why_missing(field).unwrap_or_else(|| panic!("{field} is not reported"));
        assert_eq!((missing.member.as_str(), missing.reason.to_string().as_str()), (member, why));
    }
    assert!(ROWS.iter().all(|row| row.offset(&resolved.offsets) == ABSENT));
    assert_eq!((resolved.offsets.upid_size, resolved.offsets.death_row_bias), (ABSENT, ABSENT));
    assert_eq!(resolved.missing.len(), ROWS.len() + 1);
    let unexpected = resolved.missing.iter().filter(|it| matches!(it.reason, Reason::Unexpected { .. }));
    assert_eq!(unexpected.count(), 2);
}

#[test]
fn structures_of_one_name_must_agree() {
    let mut writer = Writer::default();
    let int = writer.int("int", 4);
    writer.structure("same", 8, &[("a", int, 0), ("b", int, 32)]);
    writer.structure("same", 8, &[("x", int, 0), ("b", int, 32)]);
    writer.structure("differs", 8, &[("b", int, 32)]);
    writer.structure("differs", 8, &[("b", int, 0)]);
    let btf = Btf::parse(writer.finish(24)).unwrap();
    assert_eq!(btf.byte_offset("same", "b"), Ok(4));
    assert_eq!(btf.byte_offset("same", "a"), Ok(0));
    assert_eq!(btf.byte_offset("differs", "b"), Err(Absent::Ambiguous));
}

/// All kinds there are, with a wanted structure behind them that is found only if each is stepped over right.
fn every_kind() -> Writer {
    let mut writer = Writer::default();
    let int = writer.int("int", 4);
    let pointer = writer.add("", 2, 0, int, &[]);
    let array = writer.add("", 3, 0, 0, &[int, int, 3]);
    let inner = writer.structure("", 8, &[("deep", int, 32)]);
    let union = writer.add("", 5, 1, 8, &[0, inner, 0]);
    writer.add("enum", 6, 1, 4, &[0, 7]);
    writer.add("forward", 7, 0, 0, &[]);
    let typedef = writer.add("typedef", 8, 0, union, &[]);
    let volatile = writer.add("", 9, 0, typedef, &[]);
    let constant = writer.add("", 10, 0, volatile, &[]);
    let restrict = writer.add("", 11, 0, constant, &[]);
    let proto = writer.add("", 13, 2, int, &[0, int, 0, pointer]);
    writer.add("function", 12, 1, proto, &[]);
    let variable = writer.add("variable", 14, 0, int, &[1]);
    writer.add(".data", 15, 1, 4, &[variable, 0, 4]);
    writer.add("float", 16, 0, 4, &[]);
    writer.add("tag", 17, 0, variable, &[u32::MAX]);
    let tagged = writer.add("user", 18, 0, restrict, &[]);
    writer.add("enum64", 19, 1, 8, &[0, 1, 2]);
    writer.structure("wanted", 40, &[("p", pointer, 0), ("a", array, 64), ("", tagged, 192)]);
    writer
}

#[test]
fn every_kind_is_understood_and_looked_through() {
    for header_bytes in [24, 40] {
        let btf = Btf::parse(every_kind().finish(header_bytes)).unwrap();
        assert_eq!(btf.byte_offset("wanted", "deep"), Ok(28));
        assert_eq!(btf.byte_offset("wanted", "a"), Ok(8));
        assert_eq!(btf.func_params("function"), Some(2));
    }
}

#[test]
fn unknown_kind_is_named() {
    let mut writer = every_kind();
    writer.add("later", 20, 0, 0, &[]);
    let error = Btf::parse(writer.finish(24)).unwrap_err().to_string();
    assert_eq!(error, "type 21 is of kind 20, which this version does not know");
}

#[test]
fn cyclic_types_end() {
    let mut writer = Writer::default();
    // Structure 1 holds itself twice without a name; 2 and 3 are typedefs of each other.
    writer.structure("loop", 8, &[("", 1, 0), ("", 1, 0), ("", 2, 0), ("t", 2, 0)]);
    writer.add("a", 8, 0, 3, &[]);
    writer.add("b", 8, 0, 2, &[]);
    let btf = Btf::parse(writer.finish(24)).unwrap();
    assert_eq!(btf.byte_offset("loop", "x"), Err(Absent::NoMember));
    assert_eq!(btf.byte_offset("loop", "t.x"), Err(Absent::NotEmbedded));
}

#[test]
fn no_truncation_and_no_changed_byte_panics() {
    let small = every_kind().finish(24);
    for length in 0..small.len() {
        use_it(small[..length].to_vec());
        for value in [0, 1, 0x7f, 0x80, 0xff, !small[length], small[length] ^ 1] {
            let mut bytes = small.clone();
            bytes[length] = value;
            use_it(bytes);
        }
    }
    // The stored kernels are too big for every place: a fixed pseudo-random walk.
    let mut state = 0x2545_f491_4f6c_dd1du64;
    for kernel in KERNELS {
        let real = stored_bytes(kernel);
        for _ in 0..300 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let at = state as usize % real.len();
            use_it(real[..at].to_vec());
            let mut bytes = real.clone();
            bytes[at] ^= (state >> 56) as u8 | 1;
            use_it(bytes);
        }
    }
}

fn use_it(bytes: Vec<u8>) {
    if let Ok(btf) = Btf::parse(bytes) {
        offsets::resolve(&btf);
        let _ = btf.member("wanted", "deep");
        btf.func_params("function");
        btf.func_params("inet_twsk_purge");
    }
}

#[test]
fn wrong_input_is_told_apart() {
    let error = |bytes: &[u8]| Btf::parse(bytes.to_vec()).unwrap_err().to_string();
    assert_eq!(error(b""), "0 bytes are too few for a BTF header");
    assert!(error(&[0x7f; 64]).starts_with("not BTF: magic number 0x7f7f"));
    let mut swapped = every_kind().finish(24);
    swapped.swap(0, 1);
    assert_eq!(error(&swapped), "BTF of the other byte order");
    let whole = every_kind().finish(24);
    assert!(error(&whole[..whole.len() - 1]).starts_with("string section reaches beyond the end"));
    let missing = Btf::from_file(Path::new("/nonexistent/btf")).unwrap_err().to_string();
    assert!(missing.contains("CONFIG_DEBUG_INFO_BTF"), "{missing}");
}

fn skip(test: &str, why: &str) {
    eprintln!("SKIP {test}: {why}");
    assert!(std::env::var_os("PORTWATCH_REQUIRE_KERNEL").is_none(), "{test} may not be skipped here: {why}");
}

/// Makes `tests/data/btf` anew, see the README there. Not part of the suite: it wants whole kernels' BTF.
#[test]
#[ignore = "rewrites tests/data/btf from the directory in PORTWATCH_WHOLE_BTF"]
fn rewrite_stored_kernels() {
    let whole = PathBuf::from(std::env::var_os("PORTWATCH_WHOLE_BTF").expect("PORTWATCH_WHOLE_BTF"));
    let structures: Vec<_> =
        ROWS.iter().map(|row| row.structure).chain(MORE_STRUCTURES.iter().copied()).collect();
    for kernel in KERNELS {
        let path = whole.join(format!("{kernel}.btf"));
        let bytes = fs::read(&path).unwrap();
        let btf = Btf::parse(bytes.clone()).unwrap();
        agrees(&btf, &bpftool::Dump::of(&path).expect("bpftool is needed to check what is stored"));
        let small = minimise::minimise(&bytes, &structures, FUNCTIONS);
        let stored = zstd::encode_all(small.as_slice(), 19).unwrap();
        let file = data().join(format!("{kernel}.btf.zst"));
        fs::write(&file, &stored).unwrap();
        println!("{}: {} bytes, {} unpacked", file.display(), stored.len(), small.len());
        assert_eq!(
            offsets::resolve(&Btf::parse(small).unwrap()).offsets,
            offsets::resolve(&btf).offsets,
            "{kernel}"
        );
    }
    rewrite_stored_offsets();
}

/// Enough after a new member of a structure that is stored already.
#[test]
#[ignore = "rewrites tests/data/btf/offsets.tsv"]
fn rewrite_stored_offsets() {
    fs::write(data().join("offsets.tsv"), table(&KERNELS.map(stored))).unwrap();
}
