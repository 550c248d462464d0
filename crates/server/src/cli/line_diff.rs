//! The lines in which two texts differ.

/// Lines of context around a change.
const CONTEXT: usize = 2;
/// Beyond so many pairs of lines everything between the common ends is told as replaced.
const PAIRS_MAX: usize = 4_000_000;

/// Changed lines with `-` and `+`, and some around them; `…` where lines are left out. Empty if the texts are the same.
pub(super) fn unified(before: &str, after: &str) -> Vec<String> {
    let (a, b): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let start = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let end = a[start..]
        .iter()
        .rev()
        .zip(b[start..].iter().rev())
        .take_while(|(x, y)| x == y)
        .count();
    let (x, y) = (&a[start..a.len() - end], &b[start..b.len() - end]);
    let mut marked: Vec<(char, &str)> = a[..start].iter().map(|l| (' ', *l)).collect();
    marked.extend(middle(x, y));
    marked.extend(a[a.len() - end..].iter().map(|l| (' ', *l)));
    let near = |n: usize| {
        let from = n.saturating_sub(CONTEXT);
        let to = (n + CONTEXT + 1).min(marked.len());
        marked[from..to].iter().any(|(mark, _)| *mark != ' ')
    };
    let mut shown = Vec::new();
    let mut left_out = false;
    for (n, (mark, line)) in marked.iter().enumerate() {
        if near(n) {
            if std::mem::take(&mut left_out) {
                shown.push("…".to_owned());
            }
            shown.push(format!("{mark} {line}").trim_end().to_owned());
        } else {
            left_out = true;
        }
    }
    shown
}

/// By the longest common subsequence.
fn middle<'a>(x: &[&'a str], y: &[&'a str]) -> Vec<(char, &'a str)> {
    if x.len().saturating_mul(y.len()) > PAIRS_MAX {
        return x
            .iter()
            .map(|l| ('-', *l))
            .chain(y.iter().map(|l| ('+', *l)))
            .collect();
    }
    let width = y.len() + 1;
    let mut longest = vec![0_u32; (x.len() + 1) * width];
    for i in (0..x.len()).rev() {
        for j in (0..y.len()).rev() {
            longest[i * width + j] = if x[i] == y[j] {
                longest[(i + 1) * width + j + 1] + 1
            } else {
                longest[(i + 1) * width + j].max(longest[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut marked = Vec::new();
    while i < x.len() || j < y.len() {
        if i < x.len() && j < y.len() && x[i] == y[j] {
            marked.push((' ', x[i]));
            i += 1;
            j += 1;
        } else if j == y.len() || (i < x.len() && longest[(i + 1) * width + j] >= longest[i * width + j + 1])
        {
            marked.push(('-', x[i]));
            i += 1;
        } else {
            marked.push(('+', y[j]));
            j += 1;
        }
    }
    marked
}

#[cfg(test)]
mod tests {
    use super::unified;

    #[test]
    fn only_what_changed_is_shown() {
        assert!(unified("a\nb\n", "a\nb\n").is_empty());
        let before = "1\n2\n3\n4\n5\n6\n7\n8\n9\n";
        let after = "1\n2\n3\n4\nfive\n6\n7\n8\n9\nten\n";
        assert_eq!(
            unified(before, after),
            [
                "…", "  3", "  4", "- 5", "+ five", "  6", "  7", "  8", "  9", "+ ten"
            ]
        );
        assert_eq!(unified("", "a\n"), ["+ a"]);
    }
}
