//! Control group, system unit and container, from `/proc/PID/cgroup`.
//!
//! A path is read from the root downwards, and the *first* element that is not a slice decides: what lies
//! below it may be delegated to whoever runs there (`Delegate=yes`, a user manager, a container), who
//! can name groups at will. What lies under `user.slice` is run by users and poses as nothing.

use hallmark_core::selector::SelectorKind;

use super::Observation;

/// Reads the text of `/proc/PID/cgroup` (cgroups(7)) into selectors.
pub(super) fn collect(text: &str, seen: &mut Observation) {
    let lines: Vec<(&str, &str)> = text.lines().filter_map(line).collect();
    let unified = lines.iter().find(|(controllers, _)| controllers.is_empty()).map(|(_, path)| *path);
    let named = lines.iter().find(|(controllers, _)| *controllers == "name=systemd").map(|(_, path)| *path);

    match unified {
        Some(path) => match rooted(path) {
            Ok(()) => seen.add(SelectorKind::CgroupPath, path),
            Err(why) => seen.miss(SelectorKind::CgroupPath, why),
        },
        None => seen.miss(SelectorKind::CgroupPath, "this host has no unified control group hierarchy"),
    }
    // On a hybrid host the unified hierarchy may hold nothing but its root; systemd's own then tells.
    let telling = unified.filter(|path| *path != "/").or(named).or(unified).unwrap_or("/");
    match rooted(telling).map(|()| place(telling)) {
        Ok(place) => {
            place.unit.into_iter().for_each(|unit| seen.add(SelectorKind::SystemdUnit, unit));
            place.container.into_iter().for_each(|id| seen.add(SelectorKind::ContainerId, id));
        }
        Err(why) => {
            seen.miss(SelectorKind::SystemdUnit, why);
            seen.miss(SelectorKind::ContainerId, why);
        }
    }
}

/// `hierarchy:controllers:path`; the path may hold further colons.
fn line(line: &str) -> Option<(&str, &str)> {
    let (_, rest) = line.split_once(':')?;
    rest.split_once(':')
}

fn rooted(path: &str) -> Result<(), &'static str> {
    if path.ends_with(" (deleted)") {
        return Err("the control group has been removed");
    }
    if path.split('/').any(|element| element == "..") {
        return Err("the process lies outside the host daemon's control group namespace");
    }
    if path.contains(char::REPLACEMENT_CHARACTER) {
        return Err("the control group's path is not UTF-8");
    }
    Ok(())
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Place {
    unit: Option<String>,
    container: Option<String>,
}

fn place(path: &str) -> Place {
    let mut elements = path.split('/').filter(|e| !e.is_empty()).peekable();
    if elements.peek() == Some(&"user.slice") {
        return Place::default();
    }
    let Some(first) = elements.find(|e| !e.ends_with(".slice")) else { return Place::default() };
    let first = unescape(first);
    let container = runtime_scope(first).map(str::to_owned).or_else(|| match first {
        // The cgroupfs driver: /docker/ID, /kubepods/[CLASS/]podUID/ID.
        "docker" => elements.next().filter(|e| is_id(e)).map(str::to_owned),
        "kubepods" => elements.take(3).skip_while(|e| !e.starts_with("pod")).nth(1).and_then(kube_element),
        _ => None,
    });
    let unit =
        UNIT_SUFFIXES.iter().any(|s| first.len() > s.len() && first.ends_with(s)).then(|| first.to_owned());
    Place { unit, container }
}

/// The kinds of unit that hold processes, besides slices (systemd.unit(5)).
const UNIT_SUFFIXES: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];

/// systemd sets `_` before a name that would clash with a kernel file.
fn unescape(element: &str) -> &str {
    element.strip_prefix('_').unwrap_or(element)
}

fn runtime_scope(element: &str) -> Option<&str> {
    let name = element.strip_suffix(".scope")?;
    ["docker-", "cri-containerd-", "crio-", "libpod-"]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))
        .filter(|id| is_id(id))
}

fn kube_element(element: &str) -> Option<String> {
    let id = ["cri-containerd-", "crio-", ""].iter().find_map(|p| element.strip_prefix(p))?;
    is_id(id).then(|| id.to_owned())
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> String {
        "0123456789abcdef".repeat(4)
    }

    fn unit(path: &str) -> Option<String> {
        place(path).unit
    }

    #[test]
    fn system_units_are_found() {
        assert_eq!(unit("/system.slice/mailer.service").as_deref(), Some("mailer.service"));
        assert_eq!(
            unit("/system.slice/system-mail.slice/mail@1.service/payload").as_deref(),
            Some("mail@1.service")
        );
        assert_eq!(unit("/agents.slice/a.service").as_deref(), Some("a.service"));
        assert_eq!(unit("/init.scope").as_deref(), Some("init.scope"));
        assert_eq!(unit("/system.slice/_cpu.service").as_deref(), Some("cpu.service"));
        assert_eq!(unit("/"), None);
        assert_eq!(unit("/system.slice"), None);
        assert_eq!(unit("/system.slice/.service"), None);
    }

    #[test]
    fn users_and_delegates_cannot_pose() {
        for path in [
            "/user.slice/user-1000.slice/user@1000.service/app.slice/mailer.service",
            "/user.slice/mailer.service",
            "/user.slice/user-1000.slice/session-3.scope",
        ] {
            assert_eq!(place(path), Place::default(), "{path}");
        }
        let id = id();
        assert_eq!(
            place(&format!("/user.slice/user-1000.slice/user@1000.service/docker-{id}.scope")).container,
            None
        );
        let inner = place(&format!("/system.slice/build.service/docker-{id}.scope/mailer.service"));
        assert_eq!(inner, Place { unit: Some("build.service".into()), container: None });
        assert_eq!(place(&format!("/system.slice/build.service/kubepods/pod1/{id}")).container, None);
    }

    #[test]
    fn containers_are_found() {
        let id = id();
        for path in [
            format!("/system.slice/docker-{id}.scope"),
            format!("/system.slice/docker-{id}.scope/init.scope"),
            format!("/machine.slice/libpod-{id}.scope"),
            format!("/docker/{id}"),
            format!("/kubepods/burstable/pod12/{id}"),
            format!("/kubepods/pod12/{id}"),
            format!("/kubepods/besteffort/pod12/crio-{id}"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-{id}.scope"
            ),
            format!("/kubepods.slice/kubepods-pod1.slice/crio-{id}.scope"),
        ] {
            assert_eq!(place(&path).container.as_deref(), Some(id.as_str()), "{path}");
        }
        for path in [
            format!("/machine.slice/libpod-conmon-{id}.scope"),
            format!("/system.slice/docker-{}.scope", &id[1..]),
            format!("/system.slice/docker-{}.scope", id.to_uppercase()),
            format!("/docker/{id}0"),
            format!("/kubepods/{id}"),
            format!("/kubepods/a/b/c/pod1/{id}"),
        ] {
            assert_eq!(place(&path).container, None, "{path}");
        }
    }

    #[test]
    fn the_file_is_read_line_by_line() {
        let mut seen = Observation::default();
        collect("12:cpu:/\n1:name=systemd:/system.slice/a.service\n0::/\n", &mut seen);
        let found: Vec<String> = seen.selectors.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["systemd:unit:a.service", "cgroup:path:/"]);

        let mut seen = Observation::default();
        collect("0::/../../system.slice/a.service\n", &mut seen);
        assert!(seen.selectors.is_empty());
        assert_eq!(seen.unobserved.len(), 3);

        let mut seen = Observation::default();
        collect("0::/system.slice/a.service (deleted)\n1:name=systemd:/system.slice/b.service\n", &mut seen);
        assert!(seen.selectors.is_empty());
    }
}
