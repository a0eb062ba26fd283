//! Layering and size, checked over the text of `src`.

use std::fs;
use std::path::{Path, PathBuf};

/// The protocol decides; it names no file, socket or clock.
#[test]
fn pure_layers_stay_pure() {
    const FORBIDDEN: &[&str] =
        &["std::fs", "std::net", "mio::", "rustix", "Instant::now", "SystemTime", "inotify::"];
    let mut found = Vec::new();
    for layer in ["wire", "session", "model"] {
        for path in sources(layer) {
            for (number, line) in code(&path) {
                for word in FORBIDDEN.iter().filter(|word| line.contains(**word)) {
                    found.push(format!("{}:{number}: {word}", path.display()));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Only the event loop knows sockets.
#[test]
fn sockets_stay_in_the_event_loop() {
    let mut found = Vec::new();
    for layer in ["model", "wire", "session", "journal", "watch", "tree", "role"] {
        for path in sources(layer) {
            for (number, line) in code(&path) {
                if line.contains("mio::") || line.contains("std::net") {
                    found.push(format!("{}:{number}", path.display()));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Each room knows only what it is built on, which keeps changes in one from being changes in all.
#[test]
fn rooms_use_only_what_they_are_built_on() {
    const MAY_USE: &[(&str, &[&str])] = &[
        ("model", &[]),
        ("wire", &["model"]),
        ("tree", &["model"]),
        // For the catalog, which is what the journal's records are of.
        ("watch", &["model", "tree", "journal"]),
        ("journal", &["model", "wire"]),
        ("session", &["model", "wire"]),
        ("role", &["model", "wire", "tree", "watch", "journal", "session"]),
        ("transport", &["wire"]),
        ("event_loop", &["model", "wire", "role", "transport"]),
        // `cli` may use all.
    ];
    // What is against the table as it stands; nothing may be added.
    const KNOWN: &[(&str, &str)] = &[
        // The replica applies items as they come, without a type of its own between.
        ("tree", "wire"),
    ];
    let mut found = Vec::new();
    for (room, may_use) in MAY_USE {
        for path in sources(room) {
            let is_test = path.components().any(|name| name.as_os_str() == "tests");
            if is_test || path.file_name().is_some_and(|name| name == "tests.rs") {
                continue;
            }
            for (number, line) in code(&path) {
                for used in line.split("crate::").skip(1) {
                    let used = used.split(|c: char| c != '_' && !c.is_alphanumeric()).next();
                    let used = used.unwrap_or_default();
                    let is_known = KNOWN.contains(&(*room, used));
                    if used != *room && !may_use.contains(&used) && !is_known {
                        found.push(format!("{}:{number}: {room} uses {used:?}", path.display()));
                    }
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn no_file_outgrows_its_purpose() {
    const LINES_MAX: usize = 700;
    let long: Vec<String> = sources("")
        .into_iter()
        .map(|path| (fs::read_to_string(&path).unwrap().lines().count(), path))
        .filter(|(lines, _)| *lines > LINES_MAX)
        .map(|(lines, path)| format!("{}: {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn nothing_is_left_to_do() {
    let mut found = Vec::new();
    for path in sources("") {
        for (number, line) in code(&path) {
            for word in ["todo!", "unimplemented!", "dbg!"] {
                if line.contains(word) {
                    found.push(format!("{}:{number}: {word}", path.display()));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Returns the Rust files below `src/below`; a layer not there yet has none.
fn sources(below: &str) -> Vec<PathBuf> {
    fn descend(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                descend(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    descend(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(below), &mut found);
    found.sort();
    found
}

/// Returns numbered lines without comments, up to the tests at the end of the file.
fn code(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .enumerate()
        .take_while(|(_, line)| line.trim() != "#[cfg(test)]")
        .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default().to_owned()))
        .collect()
}
