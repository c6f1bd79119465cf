//! Walks of live, blocked processes, compared with what is true, with framehop and with gdb.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, Unwinder as _};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _};

use super::mapping::Backing;
use super::unwind::{Outcome, Why};
use super::*;

/// Enough for the deepest stack here.
const COPY_BYTES: u64 = 256 << 10;

fn skip(why: &str) {
    assert!(std::env::var_os("PORTWATCH_REQUIRE_KERNEL").is_none(), "{why}");
    eprintln!("SKIP: {why}");
}

/// A child that is ended with its test.
struct Running {
    child: Child,
    _stdin: Option<ChildStdin>,
    _stdout: Option<ChildStdout>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn new(command: &mut Command) -> Option<Running> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        Some(Running { child, _stdin: stdin, _stdout: stdout })
    }

    /// Waits until task `tid` is blocked in one of the system calls: a number, arguments behind it if they matter.
    fn wait_blocked(&self, tid: u32, calls: &[&str]) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let syscall = fs::read_to_string(format!("/proc/{tid}/syscall")).unwrap_or_default();
            if calls.iter().any(|call| syscall.starts_with(&format!("{call} "))) {
                return;
            }
            assert!(Instant::now() < deadline, "process {tid} does not block in {calls:?}: `{syscall}`");
            std::thread::yield_now();
        }
    }
}

/// Registers and stack of a blocked task, as the kernel side would send them.
struct Taken {
    registers: Registers,
    bytes: Vec<u8>,
    valid: u64,
}

fn take(tgid: u32, tid: u32) -> Taken {
    let task = Pid::from_raw(tid.try_into().unwrap());
    ptrace::seize(task, ptrace::Options::empty()).unwrap();
    ptrace::interrupt(task).unwrap();
    waitpid(task, Some(WaitPidFlag::__WALL)).unwrap();
    let saved = ptrace::getregs(task).unwrap();
    let registers = Registers { ip: saved.rip, sp: saved.rsp, bp: saved.rbp };
    let memory = File::open(format!("/proc/{tgid}/mem")).unwrap();
    let (mut bytes, mut valid, mut at) = (Vec::new(), 0, registers.sp);
    let mut part = 0;
    while at < registers.sp + COPY_BYTES - 4096 && part < 64 {
        let end = (at / 4096 + 1) * 4096;
        let mut page = vec![0; usize::try_from(end - at).unwrap()];
        if memory.read_exact_at(&mut page, at).is_ok() {
            valid |= 1 << part;
        }
        bytes.extend(page);
        at = end;
        part += 1;
    }
    ptrace::detach(task, None).unwrap();
    Taken { registers, bytes, valid }
}

fn walk(stacks: &mut Stacks, tgid: u32, taken: &Taken) -> Unwound {
    stacks.unwind_snapshot(&Snapshot {
        tgid,
        start_boot_ns: 0,
        mono_ns: u64::MAX,
        registers: taken.registers,
        stack: StackBytes { start: taken.registers.sp, bytes: &taken.bytes, valid: taken.valid },
        prefix: &[],
    })
}

/// The same walk by framehop.
fn oracle(tgid: u32, taken: &Taken) -> Vec<u64> {
    let mut unwinder: UnwinderX86_64<Vec<u8>> = UnwinderX86_64::new();
    for mapping in mapping::parse(&fs::read(format!("/proc/{tgid}/maps")).unwrap()) {
        let Backing::File { path, .. } = &mapping.backing else { continue };
        let link = format!("/proc/{tgid}/map_files/{:x}-{:x}", mapping.start, mapping.end);
        let bytes = fs::read(link).or_else(|_| fs::read(path)).unwrap();
        let Ok(file) = ElfFile64::<object::Endianness>::parse(bytes.as_slice()) else { continue };
        let range = |name| file.section_by_name(name).map(|s| s.address()..s.address() + s.size());
        let data = |name| file.section_by_name(name).and_then(|s| s.data().ok()).map(<[u8]>::to_vec);
        let segment = file.elf_program_headers().iter().find(|segment| {
            use object::read::elf::ProgramHeader as _;
            let (offset, bytes) = (segment.p_offset(file.endian()), segment.p_filesz(file.endian()));
            let is_code = segment.p_type(file.endian()) == object::elf::PT_LOAD
                && segment.p_flags(file.endian()) & object::elf::PF_X != 0;
            is_code
                && mapping.offset < offset + bytes
                && offset < mapping.offset + (mapping.end - mapping.start)
        });
        let Some(segment) = segment else { continue };
        let bias = {
            use object::read::elf::ProgramHeader as _;
            let at = mapping.start.wrapping_sub(mapping.offset);
            at.wrapping_add(segment.p_offset(file.endian())).wrapping_sub(segment.p_vaddr(file.endian()))
        };
        unwinder.add_module(framehop::Module::new(
            path.display().to_string(),
            mapping.start..mapping.end,
            bias,
            ExplicitModuleSectionInfo {
                base_svma: 0,
                text_svma: range(".text"),
                text: data(".text"),
                got_svma: range(".got"),
                eh_frame_svma: range(".eh_frame"),
                eh_frame: data(".eh_frame"),
                eh_frame_hdr_svma: range(".eh_frame_hdr"),
                eh_frame_hdr: data(".eh_frame_hdr"),
                ..Default::default()
            },
        ));
    }
    let stack = StackBytes { start: taken.registers.sp, bytes: &taken.bytes, valid: taken.valid };
    let mut read = |address| stack.word(address).ok_or(());
    let Registers { ip, sp, bp } = taken.registers;
    let mut cache = CacheX86_64::<_>::new();
    let mut frames = unwinder.iter_frames(ip, UnwindRegsX86_64::new(ip, sp, bp), &mut cache, &mut read);
    let mut addresses = Vec::new();
    while let Ok(Some(frame)) = frames.next() {
        addresses.push(frame.address());
    }
    addresses
}

/// The same walk by gdb, without the frames that it makes up.
fn debugger(tgid: u32) -> Option<Vec<u64>> {
    let script = "python\n\
        frame = gdb.newest_frame()\n\
        while frame is not None:\n\
        \x20   if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):\n\
        \x20       print('pc %x' % frame.pc())\n\
        \x20   frame = frame.older()\n\
        end\n";
    let path = std::env::temp_dir().join(format!("portwatch-{}-{tgid}.gdb", std::process::id()));
    let settings = "set debuginfod enabled off\nset backtrace past-main on\nset backtrace past-entry on\n";
    fs::write(&path, format!("{settings}attach {tgid}\n{script}detach\n")).unwrap();
    let output = Command::new("gdb").args(["-nx", "-batch", "-x"]).arg(&path).output();
    fs::remove_file(&path).unwrap();
    let text = String::from_utf8_lossy(&output.ok()?.stdout).into_owned();
    let addresses: Vec<u64> =
        text.lines().filter_map(|line| u64::from_str_radix(line.strip_prefix("pc ")?, 16).ok()).collect();
    (!addresses.is_empty()).then_some(addresses)
}

/// Builds the program of known paths once per kind of linking.
fn paths_program(flags: &[&str]) -> Option<PathBuf> {
    static DIRECTORY: OnceLock<tempfile::TempDir> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| tempfile::tempdir().unwrap());
    let name: String =
        flags.iter().flat_map(|flag| flag.chars()).filter(|c| c.is_ascii_alphanumeric()).collect();
    let thread = format!("{:?}", std::thread::current().id()).replace(['(', ')'], "");
    let program = directory.path().join(format!("paths-{name}-{thread}"));
    let source = directory.path().join(format!("paths-{name}-{thread}.c"));
    fs::write(&source, include_str!("testdata/paths.c")).unwrap();
    let output = Command::new("cc")
        .args(["-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls", "-pthread", "-w", "-o"])
        .args([&program, &source])
        .args(flags)
        .output()
        .ok()?;
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    Some(program)
}

/// Starts the program on a path and waits until the task at its end is blocked: (process, its task).
fn on_path(program: &Path, path: &str) -> (Running, u32) {
    let mut running = Running::new(Command::new(program).arg(path)).unwrap();
    let mut told = [0];
    running._stdout.as_mut().unwrap().read_exact(&mut told).unwrap();
    let tgid = running.child.id();
    let tasks = || fs::read_dir(format!("/proc/{tgid}/task")).unwrap().flatten();
    let ids = tasks().filter_map(|task| task.file_name().to_str()?.parse::<u32>().ok());
    let tid = if path == "thread" { ids.max().unwrap() } else { tgid };
    running.wait_blocked(tid, &["7", "271"]);
    (running, tid)
}

const PATHS: &[(&str, &[&str])] = &[
    ("direct", &["block_here", "main"]),
    ("plain", &["block_here", "plain_inner", "plain_middle", "plain", "main"]),
    ("alloca", &["block_here", "with_alloca", "main"]),
    ("callback", &["block_here", "compare", "callback", "main"]),
    ("realigned", &["block_here", "realigned", "main"]),
    ("realigned_with_arguments", &["block_here", "realigned_with_arguments", "main"]),
    ("big_frame", &["block_here", "big_frame", "main"]),
    ("sparse_frame", &["block_here", "sparse_frame", "main"]),
    ("signal", &["block_here", "on_signal", "in_signal_handler", "main"]),
    ("thread", &["block_here", "plain_inner", "plain_middle", "thread_main"]),
];

/// Functions of the program itself on the stack, and the whole answer.
fn functions(stacks: &mut Stacks, tgid: u32, addresses: &[u64]) -> (Vec<String>, Resolved) {
    let raw = RawStack { id: StackId(1), tgid, start_boot_ns: 0, addresses: addresses.to_vec() };
    let resolved = stacks.resolve_at(&raw, 0, u64::MAX);
    let own = |frame: &&Frame| frame.module.as_ref().is_some_and(|module| module.contains("/paths-"));
    let names = resolved.stack.frames.iter().filter(own).filter_map(|frame| frame.function.clone());
    // Where a program is linked statically the C library is in it too.
    let known =
        |name: &String| PATHS.iter().any(|(_, path)| path.contains(&name.as_str())) || name == "recurse";
    (names.filter(known).collect(), resolved)
}

#[test]
fn walk_of_every_path_is_what_is_true() {
    let with_debug_frame = ["-g", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables", "-no-pie"];
    for flags in [&[][..], &["-no-pie"], &["-static"], &["-g"], &with_debug_frame] {
        let Some(program) = paths_program(flags) else { return skip("no C compiler") };
        let mut stacks = Stacks::new(Options::default());
        for (path, expected) in PATHS {
            let (running, tid) = on_path(&program, path);
            let tgid = running.child.id();
            let unwound = walk(&mut stacks, tgid, &take(tgid, tid));
            let context = format!("path {path} built with {flags:?}: {unwound:x?}");
            assert_eq!(unwound.outcome, Outcome::Complete, "{context}");
            let (names, resolved) = functions(&mut stacks, tgid, &unwound.addresses);
            assert_eq!(&names, expected, "{context}");
            assert_eq!(resolved.completeness, Completeness::Complete, "{context}");
            // The kernel side gets a row for every address of the stack.
            assert_eq!(
                unwound.rows.iter().map(|(pc, _)| *pc).collect::<Vec<_>>(),
                unwound.addresses,
                "{context}"
            );
            let site = resolved.call_site.unwrap();
            // In a static program the C library's `poll` is the program's own; `connect` is known by its name.
            assert!(flags.contains(&"-static") || site.starts_with("block_here"), "{site}");
            if flags.contains(&"-g") {
                assert!(site.starts_with("block_here (paths-") && site.contains(".c:"), "{site}");
            }
        }
    }
}

#[test]
fn deep_recursion_is_walked_to_its_end() {
    let Some(program) = paths_program(&[]) else { return skip("no C compiler") };
    let (running, tid) = on_path(&program, "recursion");
    let tgid = running.child.id();
    let mut stacks = Stacks::new(Options::default());
    let unwound = walk(&mut stacks, tgid, &take(tgid, tid));
    assert_eq!(unwound.outcome, Outcome::Complete);
    let (names, _) = functions(&mut stacks, tgid, &unwound.addresses);
    assert_eq!(names.iter().filter(|name| *name == "recurse").count(), 76);
}

#[test]
fn walk_goes_on_where_another_stopped() {
    let Some(program) = paths_program(&[]) else { return skip("no C compiler") };
    for path in ["plain", "alloca", "big_frame", "signal"] {
        let (running, tid) = on_path(&program, path);
        let tgid = running.child.id();
        let mut stacks = Stacks::new(Options::default());
        let taken = take(tgid, tid);
        let whole = walk(&mut stacks, tgid, &taken);
        let stack = StackBytes { start: taken.registers.sp, bytes: &taken.bytes, valid: taken.valid };
        for count in 1..whole.rows.len() {
            // As the kernel side does it: with the rows it has, then the rest of the stack is sent.
            let mut left = count;
            let mut registers = taken.registers;
            let known: Vec<Row> = whole.rows.iter().map(|(_, row)| *row).collect();
            for row in &known[..count] {
                unwind::step(&mut registers, *row, &stack).unwrap();
                left -= 1;
            }
            assert_eq!(left, 0);
            let rest = registers
                .sp
                .checked_sub(stack.start)
                .and_then(|skip| taken.bytes.get(usize::try_from(skip).unwrap()..));
            let pages = registers.sp / 4096 - stack.start / 4096;
            let unwound = stacks.unwind_snapshot(&Snapshot {
                tgid,
                start_boot_ns: 0,
                mono_ns: u64::MAX,
                registers,
                stack: StackBytes { start: registers.sp, bytes: rest.unwrap(), valid: taken.valid >> pages },
                prefix: &whole.addresses[..count],
            });
            assert_eq!(unwound.addresses, whole.addresses, "path {path} after {count}");
            assert_eq!(unwound.outcome, Outcome::Complete);
            assert_eq!(unwound.rows, whole.rows[count..]);
        }
    }
}

#[test]
fn stack_that_was_cut_is_truncated_and_right_up_to_there() {
    let Some(program) = paths_program(&[]) else { return skip("no C compiler") };
    let (running, tid) = on_path(&program, "big_frame");
    let tgid = running.child.id();
    let mut stacks = Stacks::new(Options::default());
    let mut taken = take(tgid, tid);
    let whole = walk(&mut stacks, tgid, &taken);
    taken.bytes.truncate(16 << 10);
    let cut = walk(&mut stacks, tgid, &taken);
    assert_eq!(cut.outcome, Outcome::Truncated(Why::NotCaptured));
    assert!(whole.addresses.starts_with(&cut.addresses) && cut.addresses.len() < whole.addresses.len());
    // Page 0 missing: not even the first return address is known.
    taken.valid &= !1;
    let cut = walk(&mut stacks, tgid, &taken);
    assert_eq!(
        (cut.addresses.as_slice(), cut.outcome),
        (&whole.addresses[..1], Outcome::Truncated(Why::NotCaptured))
    );
}

/// Programs blocked in a system call, with the calls in question (poll, read, nanosleep, wait4, …).
fn stock_programs() -> Vec<(&'static str, Command, &'static [&'static str])> {
    // Of standard input: programs also read while they start.
    const READ: &[&str] = &["0 0x0"];
    const SLEEP: &[&str] = &["35", "230"];
    const WAIT: &[&str] = &["7", "232", "270", "271", "281", "23"];
    let program = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments);
        command
    };
    let python = "import time\ndef f(n):\n  time.sleep(600) if n == 0 else f(n - 1)\nlist(map(f, [5]))";
    let node = "function f(n) { return n ? [1].map(() => f(n - 1)) : require('fs').readSync(0, Buffer.alloc(1)); } f(5)";
    vec![
        ("sleep", program("/bin/sleep", &["600"]), SLEEP),
        ("cat", program("/bin/cat", &[]), READ),
        ("bash", program("/bin/bash", &["-c", "f() { read line; }; f; :"]), READ),
        (
            "perl",
            program(
                "perl",
                &["-e", "sub f { my $n = shift; $n ? f($n - 1) : sysread(STDIN, my $x, 1) } f(5)"],
            ),
            READ,
        ),
        ("python3", program("/usr/bin/python3", &["-c", python]), &["23", "35", "230", "270"]),
        ("node", program("node", &["-e", node]), READ),
        ("git", program("git", &["cat-file", "--batch"]), READ),
        ("openssl", program("openssl", &["enc", "-base64"]), READ),
        ("curl", program("curl", &["-s", "http://127.0.0.1:1/"]), WAIT),
    ]
}

#[test]
fn walk_of_stock_programs_equals_framehops_and_gdbs() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let mut compared = Vec::new();
    for (name, mut command, calls) in stock_programs() {
        if name == "curl" {
            // Nobody answers, so it waits in its library's loop.
            command = Command::new("curl");
            command.args(["-s", &url]);
        }
        command.env("PATH", std::env::var_os("PATH").unwrap()).current_dir(env!("CARGO_MANIFEST_DIR"));
        let Some(running) = Running::new(&mut command) else {
            skip(&format!("`{name}` is not installed"));
            continue;
        };
        let tgid = running.child.id();
        running.wait_blocked(tgid, calls);
        let taken = take(tgid, tgid);
        let mut stacks = Stacks::new(Options::default());
        let unwound = walk(&mut stacks, tgid, &taken);
        let context = format!("{name}: {unwound:x?}");
        assert_eq!(unwound.outcome, Outcome::Complete, "{context}");
        assert_eq!(unwound.addresses, oracle(tgid, &taken), "{context}");
        match debugger(tgid) {
            // gdb loses its way in code that V8 made.
            Some(_) if name == "node" => {}
            Some(addresses) => assert_eq!(unwound.addresses, addresses, "{context}"),
            None => skip("no gdb"),
        }
        let count = unwound.addresses.len();
        let raw = RawStack { id: StackId(1), tgid, start_boot_ns: 0, addresses: unwound.addresses };
        let resolved = stacks.resolve_at(&raw, 0, u64::MAX);
        assert_eq!(resolved.completeness, Completeness::Complete, "{context}");
        compared.push((name, count, resolved.call_site));
    }
    eprintln!("compared: {compared:?}");
    assert!(compared.len() >= 3, "{compared:?}");
}

#[test]
fn walk_of_known_paths_equals_framehops_and_gdbs() {
    let Some(program) = paths_program(&[]) else { return skip("no C compiler") };
    for (path, _) in PATHS {
        let (running, tid) = on_path(&program, path);
        let tgid = running.child.id();
        let taken = take(tgid, tid);
        let mut stacks = Stacks::new(Options::default());
        let unwound = walk(&mut stacks, tgid, &taken);
        let oracles = oracle(tgid, &taken);
        // framehop follows neither signal frames nor frames whose CFA is a word in memory.
        if matches!(*path, "signal" | "realigned_with_arguments") {
            assert!(unwound.addresses.starts_with(&oracles[..2.min(oracles.len())]), "{path}");
        } else {
            assert_eq!(unwound.addresses, oracles, "{path}");
        }
        if tid == tgid {
            match debugger(tgid) {
                Some(addresses) => assert_eq!(unwound.addresses, addresses, "{path}"),
                None => return skip("no gdb"),
            }
        }
    }
}

#[test]
fn a_rust_program_is_walked_with_the_bias_of_its_code_segment() {
    // This very test binary: rustc links with lld where it can, which puts two segments into one page of the file.
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(&program);
    command
        .args(["--exact", "--nocapture", "stack::live_tests::blocks_when_told_to"])
        .env("PORTWATCH_TEST_BLOCK", "1");
    let mut running = Running::new(&mut command).unwrap();
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"blocked ") {
        assert_eq!(running._stdout.as_mut().unwrap().read(&mut byte).unwrap(), 1);
        text.push(byte[0]);
    }
    let tgid = running.child.id();
    let tasks = fs::read_dir(format!("/proc/{tgid}/task")).unwrap().flatten();
    let tid = tasks.filter_map(|task| task.file_name().to_str()?.parse::<u32>().ok()).max().unwrap();
    running.wait_blocked(tid, &["0 0x0"]);
    let taken = take(tgid, tid);
    let mut stacks = Stacks::new(Options::default());
    let unwound = walk(&mut stacks, tgid, &taken);
    assert_eq!(unwound.outcome, Outcome::Complete, "{unwound:x?}");
    assert_eq!(unwound.addresses, oracle(tgid, &taken));
    let raw = RawStack { id: StackId(1), tgid, start_boot_ns: 0, addresses: unwound.addresses };
    let resolved = stacks.resolve_at(&raw, 0, u64::MAX);
    let names: Vec<&str> =
        resolved.stack.frames.iter().filter_map(|frame| frame.function.as_deref()).collect();
    assert!(names.iter().any(|name| name.contains("blocks_when_told_to")), "{names:?}");
    let site = resolved.call_site.unwrap();
    assert!(site.contains("blocks_when_told_to") && site.contains("(live_tests.rs:"), "{site}");
}

/// Not a test of its own: the program of the one above.
#[test]
fn blocks_when_told_to() {
    if std::env::var_os("PORTWATCH_TEST_BLOCK").is_some() {
        print!("blocked ");
        std::io::Write::flush(&mut std::io::stdout()).unwrap();
        let _ = std::io::stdin().read(&mut [0]);
    }
}

#[test]
fn stacks_of_processes_that_ended_are_named_as_those_of_live_ones() {
    let Some(program) = paths_program(&[]) else { return skip("no C compiler") };
    let mut stacks = Stacks::new(Options { sideband: true, ..Options::default() });
    if let Some(note) = stacks.note() {
        return skip(note);
    }
    // Taken while they live, asked for when they are gone: only records told of their mappings.
    let mut taken = Vec::new();
    for _ in 0..20 {
        let (running, tid) = on_path(&program, "plain");
        let tgid = running.child.id();
        taken.push((tgid, start_time::of_process(tgid).unwrap(), take(tgid, tid)));
    }
    stacks.drain_sideband();
    for (tgid, start_boot_ns, taken) in &taken {
        let unwound = stacks.unwind_snapshot(&Snapshot {
            tgid: *tgid,
            start_boot_ns: *start_boot_ns,
            mono_ns: u64::MAX,
            registers: taken.registers,
            stack: StackBytes { start: taken.registers.sp, bytes: &taken.bytes, valid: taken.valid },
            prefix: &[],
        });
        assert_eq!(unwound.outcome, Outcome::Complete, "{unwound:x?}");
        let raw = RawStack {
            id: StackId(1),
            tgid: *tgid,
            start_boot_ns: *start_boot_ns,
            addresses: unwound.addresses,
        };
        let resolved = stacks.resolve_at(&raw, *start_boot_ns, u64::MAX);
        let names: Vec<&str> = resolved.stack.frames.iter().filter_map(|f| f.function.as_deref()).collect();
        for expected in ["block_here", "plain_inner", "plain_middle", "plain", "main"] {
            assert!(names.contains(&expected), "{names:?}");
        }
        assert_eq!(resolved.completeness, Completeness::Complete);
        assert!(resolved.call_site.is_some_and(|site| site.starts_with("block_here+0x")));
    }
    assert_eq!(stacks.counters().maps.missing, 0);
    // One program, one C library, one loader at most.
    assert!(stacks.counters().modules.opened <= 3, "{:?}", stacks.counters());
}
