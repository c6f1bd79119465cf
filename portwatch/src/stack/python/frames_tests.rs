use super::*;
use crate::event::StackId;

fn native(names: &[&str]) -> Vec<PlacedFrame> {
    let frame = |name: &&str| Frame {
        function: Some((*name).to_owned()),
        kind: FrameKind::Native,
        ..Frame::default()
    };
    names.iter().map(|name| PlacedFrame { frame: frame(name), function_offset: Some(0) }).collect()
}

/// Code objects 1 to 9, called `f1` to `f9` in `app.py`, each on the line of its number times ten.
fn codes() -> Codes {
    let mut codes = Codes::default();
    let text = |text: &str| (1 << 2 | 1 << 5 | 1 << 6, text.len() as u32, text.as_bytes().to_vec());
    for id in 1..10u64 {
        codes.add(RawPythonCode {
            generation: 5,
            code_id: id,
            minor: 11,
            first_line: 10 * id as u32,
            file: text("/srv/app.py"),
            name: text(&format!("f{id}")),
            // One instruction, on the first line.
            table: vec![0x80 | 13 << 3, 0],
            table_bytes: 2,
        });
    }
    codes
}

fn python(state: PythonState, frames: &[(u64, bool)]) -> RawPythonStack {
    let frame = |&(code_id, is_entry): &(u64, bool)| PythonFrame { code_id, at: 0, is_entry };
    RawPythonStack {
        id: StackId(1),
        generation: 5,
        hash: 9,
        state,
        frames: frames.iter().map(frame).collect(),
    }
}

fn names(frames: &[PlacedFrame]) -> Vec<String> {
    frames.iter().map(|placed| placed.frame.function.clone().unwrap_or_else(|| "?".to_owned())).collect()
}

#[test]
fn each_run_of_the_evaluator_gives_way_to_its_frames() {
    let stack = ["connect", EVALUATOR, "PyObject_Call", "ext", "_PyEval_EvalFrameDefault.cold", "main"];
    let python = python(PythonState::Whole, &[(1, false), (2, true), (3, true)]);
    let merged = merge(native(&stack), true, Some(&python), &mut codes(), || None);
    assert_eq!(names(&merged), ["connect", "f1", "f2", "PyObject_Call", "ext", "f3", "main"]);
    let frame = &merged[2].frame;
    assert_eq!(
        (frame.file.as_deref(), frame.line, frame.kind),
        (Some("/srv/app.py"), Some(20), FrameKind::Python)
    );
}

#[test]
fn frames_stay_in_order_where_runs_and_frames_do_not_match() {
    let frames = [(1, true), (2, true), (3, true)];
    for (stack, is_complete, state, expected) in [
        // The native stack was cut.
        (
            &["connect", EVALUATOR, "a"][..],
            false,
            PythonState::Whole,
            &["connect", "f1", "a", "f2", "f3"][..],
        ),
        (&["connect"], false, PythonState::Whole, &["connect", "f1", "f2", "f3"]),
        // It was not, and there is no telling which run is whose.
        (
            &["connect", EVALUATOR, "a", EVALUATOR],
            true,
            PythonState::Whole,
            &["connect", "f1", "f2", "f3", "a", EVALUATOR],
        ),
        // Python's was cut: what runs further out stays as it is.
        (
            &["connect", EVALUATOR, "a", EVALUATOR, "b", EVALUATOR, "c", EVALUATOR],
            true,
            PythonState::Cut,
            &["connect", "f1", "a", "f2", "b", "f3", "c", EVALUATOR],
        ),
    ] {
        let merged = merge(native(stack), is_complete, Some(&python(state, &frames)), &mut codes(), || None);
        assert_eq!(names(&merged), expected);
    }
}

#[test]
fn evaluator_says_why_it_is_shown() {
    let stack = ["connect", EVALUATOR, "main"];
    let bad = python(PythonState::Unreadable, &[]);
    let lost = python(PythonState::NoThread, &[]);
    for (python, refused, expected) in [
        (None, None, "too young"),
        (None, Some("it is a debug build of Python".to_owned()), "debug build"),
        (Some(&bad), None, "could not be read"),
        (Some(&lost), None, "does not list the thread"),
    ] {
        let merged = merge(native(&stack), true, python, &mut codes(), || refused);
        assert_eq!(names(&merged), stack);
        assert!(merged[1].frame.reason.as_ref().unwrap().contains(expected), "{:?}", merged[1].frame.reason);
        assert_eq!(merged[0].frame.reason, None);
    }
    // A thread that runs no Python code has nothing to explain.
    let merged = merge(native(&["connect", "main"]), true, Some(&lost), &mut codes(), || None);
    assert!(merged.iter().all(|placed| placed.frame.reason.is_none()));
}

#[test]
fn code_that_was_not_received_has_a_reason() {
    let python = python(PythonState::Whole, &[(77, true)]);
    let merged = merge(native(&[EVALUATOR]), true, Some(&python), &mut codes(), || None);
    assert_eq!(merged[0].frame.kind, FrameKind::Python);
    assert!(merged[0].frame.reason.is_some() && merged[0].frame.function.is_none());
}

#[test]
fn codes_in_use_stay_when_room_is_made() {
    let mut codes = codes();
    let text = (1 << 2 | 1 << 5 | 1 << 6, 1, b"x".to_vec());
    for id in 100..100 + CODES_MAX as u64 {
        codes.add(RawPythonCode {
            generation: 5,
            code_id: id,
            minor: 11,
            first_line: 1,
            file: text.clone(),
            name: text.clone(),
            table: Vec::new(),
            table_bytes: 0,
        });
        codes.frame(5, &PythonFrame { code_id: 1, at: -1, is_entry: true });
    }
    assert!(codes.known.len() <= CODES_MAX);
    let frame = codes.frame(5, &PythonFrame { code_id: 1, at: -1, is_entry: true });
    assert_eq!(frame.frame.function.as_deref(), Some("f1"));
}
