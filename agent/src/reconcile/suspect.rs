//! Whose rule it is that the tool complains about.

use crate::iptables::names::is_per_service;

/// What the line that the tool names tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Suspect<'a> {
    /// It is in, or declares, a chain of one service.
    Chain(&'a str),
    /// It is in a chain of many, and names its service in a comment: `namespace/name`.
    Service(&'a str),
}

/// Reads the line that the tool names; `None` where it names none, or one that is nobody's. iptables-nft names the line
/// of the rule, or of the chain; iptables-legacy often only that of COMMIT.
pub(super) fn suspect<'a>(message: &str, text: &'a str) -> Option<Suspect<'a>> {
    let line = text.lines().nth(line_number(message)?.checked_sub(1)?)?;
    let name = line.strip_prefix("-A ").or_else(|| line.strip_prefix(':'))?.split(' ').next()?;
    service(line).map(Suspect::Service).or_else(|| is_per_service(name).then_some(Suspect::Chain(name)))
}

fn line_number(message: &str) -> Option<usize> {
    let (_, after) = message.split_once("line: ").or_else(|| message.split_once("line "))?;
    let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    after[..digits].parse().ok()
}

fn service(line: &str) -> Option<&str> {
    let (_, comment) = line.split_once("--comment \"")?;
    let word = comment.split(['"', ' ']).find(|word| word.contains('/'))?;
    Some(word.split(':').next().unwrap_or(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "*nat
:KUBE-SEP-0ABCG1 - [0:0]
-A KUBE-SEP-0ABCG1 -p tcp -j DNAT --to-destination 10.0.0.1:80
-A KUBE-SVC-AAAA -d 10.96.0.1/32 -p tcp -m comment --comment \"ns/web:http cluster IP\" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SERVICES -d 10.96.0.2/32 -p tcp -m comment --comment \"ns/cart:http cluster IP\" -m tcp --dport 80 -j KUBE-SVC-BBBB
-A KUBE-EXT-CCCC -m comment --comment \"masquerade traffic for ns/dns external destinations\" -j KUBE-MARK-MASQ
COMMIT
";

    #[test]
    fn a_line_is_somebodys() {
        let at = |line: usize| {
            suspect(&format!("line {line}: RULE_APPEND failed (No such file or directory)"), TEXT)
        };
        assert_eq!(at(2), Some(Suspect::Chain("KUBE-SEP-0ABCG1")));
        assert_eq!(at(3), Some(Suspect::Chain("KUBE-SEP-0ABCG1")));
        assert_eq!(at(4), Some(Suspect::Service("ns/web")));
        assert_eq!(at(5), Some(Suspect::Service("ns/cart")));
        assert_eq!(at(6), Some(Suspect::Service("ns/dns")));
        assert_eq!((at(7), at(1), at(0), at(99)), (None, None, None, None));
        assert_eq!(suspect("Error occurred at line: 5", TEXT), Some(Suspect::Service("ns/cart")));
        assert_eq!(suspect("out of luck", TEXT), None);
    }
}
