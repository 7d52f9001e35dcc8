//! What will be done, for people.

use super::{
    plan::{Meshed, Plan, is_root},
    words,
};

/// The plan as a table with notes.
#[must_use]
pub fn text(plan: &Plan) -> String {
    let head = ["SERVICE", "IN THE MESH", "PORTS", "USER", "WRAPPED"].map(str::to_owned).to_vec();
    let mut rows = vec![head];
    rows.extend(plan.meshed.iter().map(row));
    let mut text = table(&rows);
    let mut section = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            text += &format!("\n{title}:\n{}", lines.iter().map(|line| format!("  {line}\n")).collect::<String>());
        }
    };
    section("Left as they are", plan.skipped.iter().map(|s| format!("{}: {}", s.service, s.reason)).collect());
    let mut notes: Vec<String> =
        plan.meshed.iter().flat_map(|m| m.notes.iter().map(|note| format!("{}: {note}", m.service))).collect();
    if plan.own_network {
        notes.push(
            "the services have no network in common: all join one more, weft-mesh; who may call whom there is what an \
             AccessPolicy says"
                .to_owned(),
        );
    }
    section("Notes", notes);
    text
}

fn row(meshed: &Meshed) -> Vec<String> {
    let ports = meshed.ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let command: Vec<String> = meshed.entrypoint.iter().chain(&meshed.arguments).cloned().collect();
    vec![
        meshed.service.clone(),
        meshed.mesh.clone(),
        if ports.is_empty() { "-".to_owned() } else { ports },
        if is_root(&meshed.user) { "root".to_owned() } else { meshed.user.clone() },
        shortened(&words::join(&command)),
    ]
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(WIDEST_COMMAND) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// Longer ones are cut.
const WIDEST_COMMAND: usize = 60;
