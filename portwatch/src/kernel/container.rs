//! Container ids in cgroup paths.
//!
//! A guess by naming habits, which a container with a delegated cgroup could imitate below its own; good for
//! telling containers apart, not for trusting them.

/// Id of the innermost container that a cgroup path shows, `None` when it shows none.
///
/// Runtimes by their hex id: Docker, containerd and CRI, CRI-O, Podman, ECS and others that follow them.
/// By name: LXC, systemd-nspawn.
pub fn id(cgroup: &str) -> Option<String> {
    let mut parent = "";
    let mut found = None;
    for component in cgroup.split('/').filter(|component| !component.is_empty()) {
        found = hex_id(component).or_else(|| name(parent, component)).or(found);
        parent = component;
    }
    found
}

/// `<64 hex digits>`, alone or as `docker-….scope`, `cri-containerd-….scope`, `crio-…`, `libpod-….scope`,
/// `kubepods-…:cri-containerd:…`.
fn hex_id(component: &str) -> Option<String> {
    const HEX_DIGITS: usize = 64;
    let stem = component.strip_suffix(".scope").or(component.strip_suffix(".service")).unwrap_or(component);
    let (prefix, last) = stem.rsplit_once(['-', ':']).unwrap_or(("", stem));
    // conmon watches a container from outside.
    let is_id = last.len() == HEX_DIGITS
        && last.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        && !prefix.ends_with("conmon");
    is_id.then(|| last.to_owned())
}

fn name(parent: &str, component: &str) -> Option<String> {
    let found = if let Some(name) = component.strip_prefix("lxc.payload.") {
        name
    } else if matches!(parent, "lxc" | "lxc.payload") {
        component
    } else if let Some(name) = component.strip_prefix("systemd-nspawn@") {
        name.strip_suffix(".service")?
    } else if let Some(name) = component.strip_prefix("machine-") {
        let name = name.strip_suffix(".scope")?;
        // Virtual machines register here as well.
        if name.starts_with("qemu") || name.starts_with("lxc\\x2d") {
            return None;
        }
        name
    } else {
        return None;
    };
    (!found.is_empty()).then(|| unescape_unit(found))
}

/// systemd writes `-` and other bytes of a name as `\x2d`.
fn unescape_unit(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    let mut rest = name;
    while let Some((before, after)) = rest.split_once("\\x") {
        text.push_str(before);
        match after
            .get(..2)
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .filter(u8::is_ascii_graphic)
        {
            Some(byte) => {
                text.push(char::from(byte));
                rest = &after[2..];
            }
            None => {
                text.push_str("\\x");
                rest = after;
            }
        }
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";
    const B: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    #[test]
    fn containers_are_known_by_their_cgroup() {
        let table = [
            (format!("/docker/{A}"), Some(A)),
            (format!("/system.slice/docker-{A}.scope"), Some(A)),
            (format!("/system.slice/docker-{A}.scope/init.scope"), Some(A)),
            (
                format!(
                    "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope/container"
                ),
                Some(A),
            ),
            (format!("/machine.slice/libpod-{A}.scope"), Some(A)),
            (format!("/libpod_parent/libpod-{A}"), Some(A)),
            (format!("/machine.slice/libpod-conmon-{A}.scope"), None),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1b2c.slice/cri-containerd-{A}.scope"
                ),
                Some(A),
            ),
            (format!("/kubepods/besteffort/pod9d8c7b6a-1111-2222-3333-444455556666/{A}"), Some(A)),
            (format!("/kubepods.slice/kubepods-pod1b2c.slice/crio-{A}.scope/container"), Some(A)),
            (format!("/kubepods.slice/kubepods-pod1b2c.slice/crio-conmon-{A}.scope"), None),
            (
                format!(
                    "/system.slice/containerd.service/kubepods-burstable-pod1b2c.slice:cri-containerd:{A}"
                ),
                Some(A),
            ),
            (format!("/ecs/0123456789abcdef/{A}"), Some(A)),
            (format!("/default/{A}"), Some(A)),
            (format!("/docker/{A}/kubelet/kubepods/pod1/{B}"), Some(B)),
            ("/lxc/web1".to_owned(), Some("web1")),
            ("/lxc.payload.web1/system.slice/nginx.service".to_owned(), Some("web1")),
            ("/lxc.monitor.web1".to_owned(), None),
            ("/machine.slice/systemd-nspawn@lab.service/payload".to_owned(), Some("lab")),
            ("/machine.slice/machine-my\\x2dlab.scope".to_owned(), Some("my-lab")),
            ("/machine.slice/machine-qemu\\x2d1\\x2dvm.scope".to_owned(), None),
            ("/system.slice/nginx.service".to_owned(), None),
            ("/".to_owned(), None),
            (String::new(), None),
            (format!("/docker/{}", &A[1..]), None),
            (format!("/docker/{}", A.to_uppercase()), None),
        ];
        for (path, expected) in table {
            assert_eq!(id(&path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn broken_unit_escapes_stay_as_they_are() {
        for (name, text) in [("a\\x2db", "a-b"), ("a\\x", "a\\x"), ("\\x0a", "\\x0a"), ("\\xé", "\\xé")] {
            assert_eq!(unescape_unit(name), text);
        }
    }
}
