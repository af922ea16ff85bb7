//! The modules of the engine are layers: a module uses only modules of its own layer and of those below, and no
//! two modules use each other, however many stand between them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// From the lowest to the highest.
const LAYERS: [&str; 8] = [
    "ids",
    "vocabulary",
    "model",
    "plan",
    "commit",
    "report",
    "view",
    "engine",
];

/// Modules by path, with the paths that their `use` declarations name.
type Modules = BTreeMap<String, BTreeSet<String>>;

#[test]
fn no_module_uses_one_of_a_higher_layer() {
    let modules = modules();
    let layer = |path: &str| {
        let first = path.split("::").next().unwrap_or_default();
        LAYERS
            .iter()
            .position(|known| *known == first)
            .unwrap_or_else(|| panic!("{path} is in no layer"))
    };
    for (module, used) in &modules {
        for used in used {
            assert!(
                layer(used) <= layer(module),
                "{module} uses {used}, which is above it"
            );
        }
    }
    assert!(modules.len() > 40, "all modules were found");
}

#[test]
fn no_modules_use_each_other_in_a_circle() {
    let modules = modules();
    let mut done = BTreeSet::new();
    for module in modules.keys() {
        follow(module, &modules, &mut Vec::new(), &mut done);
    }
    assert_eq!(done.len(), modules.len());
}

fn follow<'m>(
    module: &'m str,
    modules: &'m Modules,
    path: &mut Vec<&'m str>,
    done: &mut BTreeSet<&'m str>,
) {
    assert!(!path.contains(&module), "a circle: {path:?} -> {module}");
    if done.contains(module) {
        return;
    }
    path.push(module);
    for used in &modules[module] {
        follow(used, modules, path, done);
    }
    path.pop();
    done.insert(module);
}

fn modules() -> Modules {
    let mut sources = BTreeMap::new();
    read(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        "",
        &mut sources,
    );
    // The crate's root only declares modules, and tests may use everything.
    sources.retain(|module: &String, _| !module.is_empty() && !module.starts_with("tests"));
    let used = |(module, source): (&String, &String)| {
        let used = uses(source).into_iter();
        let used = used.filter_map(|path| resolve(module, &path, &sources));
        (module.clone(), used.filter(|used| used != module).collect())
    };
    sources.iter().map(used).collect()
}

/// Reads the sources below a directory.
fn read(dir: &Path, parent: &str, sources: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).expect("a directory of sources") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy();
        let module = match &*name {
            "mod" | "lib" => parent.to_owned(),
            name if parent.is_empty() => name.to_owned(),
            name => format!("{parent}::{name}"),
        };
        if path.is_dir() {
            read(&path, &module, sources);
        } else {
            let source = fs::read_to_string(&path).expect("a source");
            let production = source.split("#[cfg(test)]\nmod tests {").next();
            sources.insert(module, production.unwrap_or_default().to_owned());
        }
    }
}

/// The paths of all `use` declarations, and of all paths that begin with `crate::`.
fn uses(source: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let code: Vec<&str> = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    let code = code.join("\n");
    for start in ["use crate::", "use super::", "use self::"] {
        for (at, _) in code.match_indices(start) {
            let tree = &code[at + "use ".len()..];
            let tree = &tree[..tree.find(';').expect("the end of the declaration")];
            let tree: String = tree.chars().filter(|c| !c.is_whitespace()).collect();
            expand("", &tree, &mut paths);
        }
    }
    for (at, _) in code.match_indices("crate::") {
        let path = code[at..].chars();
        let path: String = path
            .take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':')
            .collect();
        paths.push(path.trim_end_matches(':').to_owned());
    }
    paths
}

/// `a::{b, c::d}` names `a::b` and `a::c::d`.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let Some(open) = tree.find('{') else {
        paths.push(format!("{prefix}{tree}"));
        return;
    };
    let prefix = format!("{prefix}{}", &tree[..open]);
    let inner = &tree[open + 1..tree.len() - 1];
    let (mut depth, mut from) = (0, 0);
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if at > from {
                    expand(&prefix, &inner[from..at], paths);
                }
                from = at + 1;
            }
            _ => {}
        }
    }
}

/// The module that a path leads to from another one; `None`: it leads to the crate's root.
fn resolve(module: &str, path: &str, sources: &BTreeMap<String, String>) -> Option<String> {
    let mut at: Vec<&str> = module.split("::").collect();
    for segment in path.split("::") {
        match segment {
            "crate" => at.clear(),
            "self" => {}
            "super" => {
                at.pop();
            }
            segment => at.push(segment),
        }
    }
    while !at.is_empty() {
        let known = at.join("::");
        if sources.contains_key(&known) {
            return Some(known);
        }
        at.pop();
    }
    None
}
