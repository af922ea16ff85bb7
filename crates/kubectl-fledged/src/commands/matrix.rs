//! `matrix`: node x image, the worst nodes first. Thousands of nodes become a summary.

use std::{collections::BTreeMap, fmt::Write as _};

use clap::ValueEnum as _;
use serde::Serialize;

use crate::{
    access::{Access, Controller, controller::Matrix as States},
    args::Matrix,
    exit::{Exit, Failure},
    output::{Out, columns, quantities::counted},
    states::Shown,
};

/// Images that have a column; of more, nodes show counts.
const MOST_COLUMNS: usize = 40;

/// What is shown.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Grid {
    images: Vec<String>,
    nodes: Vec<Line>,
    /// Nodes that fit the filters and are not in `nodes`.
    more_nodes: usize,
    /// Pairs of node and image by state, of all nodes that fit the filters.
    pairs: BTreeMap<Shown, usize>,
}

#[derive(Clone, Debug, Serialize)]
struct Line {
    node: String,
    states: Vec<Shown>,
}

/// Shows the matrix.
pub async fn run(access: &Access, out: Out, args: &Matrix) -> Result<Exit, Failure> {
    let mut controller = Controller::connect(access).await?;
    let states = controller.matrix(&access.namespace, &args.name).await?;
    let grid = grid(states, args);
    let name = format!("imagecache.kubefledged.io/{}", args.name);
    out.one(&grid, &name, &shown(&grid))?;
    Ok(Exit::Good)
}

fn grid(states: States, args: &Matrix) -> Grid {
    let wanted: Vec<bool> = states
        .images
        .iter()
        .map(|image| args.image.as_ref().is_none_or(|part| image.contains(part)))
        .collect();
    let keep = |at: usize| wanted.get(at).copied().unwrap_or(false);
    let only = |row: Vec<Shown>| -> Vec<Shown> {
        let row = row.into_iter().enumerate();
        row.filter(|(at, _)| keep(*at))
            .map(|(_, state)| state)
            .collect()
    };
    let mut pairs = BTreeMap::new();
    let mut nodes = Vec::new();
    for (node, row) in states.rows {
        if args.node.as_ref().is_some_and(|only| *only != node) {
            continue;
        }
        let states = only(row);
        let fits = args.state.is_empty() || states.iter().any(|state| args.state.contains(state));
        if !fits {
            continue;
        }
        for state in &states {
            *pairs.entry(*state).or_insert(0) += 1;
        }
        nodes.push(Line { node, states });
    }
    nodes.sort_by_cached_key(|line| (trouble(&line.states), line.node.clone()));
    let most = if args.limit == 0 {
        nodes.len()
    } else {
        args.limit
    };
    let more_nodes = nodes.len().saturating_sub(most);
    nodes.truncate(most);
    let images = states.images.into_iter().enumerate();
    Grid {
        images: images
            .filter(|(at, _)| keep(*at))
            .map(|(_, image)| image)
            .collect(),
        nodes,
        more_nodes,
        pairs,
    }
}

/// The worst state and how often comes first.
fn trouble(states: &[Shown]) -> (Shown, std::cmp::Reverse<usize>) {
    let worst = states.iter().min().copied().unwrap_or(Shown::Ready);
    let count = states.iter().filter(|state| **state == worst).count();
    (worst, std::cmp::Reverse(count))
}

fn shown(grid: &Grid) -> String {
    let mut text = if grid.images.len() > MOST_COLUMNS {
        counts(grid)
    } else {
        letters(grid)
    };
    if grid.more_nodes > 0 {
        let more = counted(grid.more_nodes, "more node");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{more}, none of them worse: --limit 0 shows all");
    }
    let pairs = grid.pairs.iter();
    let pairs: Vec<String> = pairs
        .map(|(state, count)| format!("{count} {}", state.word()))
        .collect();
    let all = counted(grid.nodes.len() + grid.more_nodes, "node");
    let images = counted(grid.images.len(), "image");
    let _ = writeln!(text, "{all} x {images}: {}", pairs.join(", "));
    text
}

/// A letter for each image on each node.
fn letters(grid: &Grid) -> String {
    let mut text = String::new();
    for (number, image) in (1..).zip(&grid.images) {
        let _ = writeln!(text, "{number:>3}  {image}");
    }
    let numbers = (1..=grid.images.len()).map(|number| number.to_string());
    let numbers: Vec<String> = std::iter::once("NODE".to_owned()).chain(numbers).collect();
    let head: Vec<&str> = numbers.iter().map(String::as_str).collect();
    let rows = grid.nodes.iter().map(|line| {
        let letters = line.states.iter().map(|state| state.letter().to_string());
        std::iter::once(line.node.clone()).chain(letters).collect()
    });
    text += "\n";
    text += &columns(&head, rows);
    let states = Shown::value_variants().iter();
    let legend: Vec<_> = states
        .map(|state| format!("{} {}", state.letter(), state.word()))
        .collect();
    let _ = writeln!(text, "\n{}", legend.join(", "));
    text
}

/// The number of images in each state on each node.
fn counts(grid: &Grid) -> String {
    let states = Shown::value_variants();
    let words: Vec<_> = states
        .iter()
        .map(|state| state.word().to_uppercase())
        .collect();
    let words = words.iter().map(String::as_str);
    let head: Vec<&str> = std::iter::once("NODE").chain(words).collect();
    let rows = grid.nodes.iter().map(|line| {
        let counts = states.iter().map(|state| {
            let count = line.states.iter().filter(|known| *known == state).count();
            if count == 0 {
                "-".to_owned()
            } else {
                count.to_string()
            }
        });
        std::iter::once(line.node.clone()).chain(counts).collect()
    });
    columns(&head, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> Matrix {
        Matrix {
            name: "web".to_owned(),
            node: None,
            image: None,
            state: Vec::new(),
            limit: 50,
        }
    }

    fn states() -> States {
        let row = |node: &str, states: [Shown; 2]| (node.to_owned(), states.to_vec());
        States {
            images: ["r/a:1", "r/b:1"].map(str::to_owned).to_vec(),
            rows: vec![
                row("n1", [Shown::Ready, Shown::Ready]),
                row("n2", [Shown::Ready, Shown::Failed]),
                row("n3", [Shown::Pulling, Shown::Pending]),
            ],
        }
    }

    #[test]
    fn the_worst_node_comes_first_and_each_pair_is_a_letter() {
        let expected = "  1  r/a:1
  2  r/b:1

NODE   1   2
n2     #   F
n3     p   .
n1     #   #

F failed, U unreachable, . pending, p pulling, - out, # ready
3 nodes x 2 images: 1 failed, 1 pending, 1 pulling, 3 ready
";
        assert_eq!(shown(&grid(states(), &args())), expected);
    }

    #[test]
    fn filters_choose_nodes_states_and_images() {
        let failed = Matrix {
            state: vec![Shown::Failed],
            image: Some("b".to_owned()),
            ..args()
        };
        let grid = grid(states(), &failed);
        assert_eq!(grid.images, ["r/b:1"]);
        assert_eq!(grid.nodes.len(), 1);
        assert_eq!(grid.nodes[0].node, "n2");
    }

    #[test]
    fn a_large_fleet_is_a_summary() {
        let ready = vec![Shown::Ready; 100];
        let mut broken = ready.clone();
        broken[7] = Shown::Unreachable;
        let mut rows: Vec<_> = (0..5000)
            .map(|n| (format!("n{n:04}"), ready.clone()))
            .collect();
        rows[4321].1 = broken;
        let large = States {
            images: (0..100).map(|n| format!("r/i:{n}")).collect(),
            rows,
        };
        let text = shown(&grid(large, &args()));
        let second = text.lines().nth(1).expect("a row");
        assert!(second.starts_with("n4321   -        1 "), "{second}");
        assert!(text.contains("4950 more nodes"));
        assert!(text.contains("5000 nodes x 100 images: 1 unreachable, 499999 ready"));
    }
}
