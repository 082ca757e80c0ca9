//! Why a handshake failed, in words for whoever runs the other end.

use std::io;

use rustls::CertificateError as Bad;
use rustls::{AlertDescription as Alert, Error};

use super::{Identity, PemFile};

fn tls(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// Of a client that was not let in.
pub(super) fn of_client(error: &io::Error, authorities: Option<&PemFile>) -> String {
    match tls(error) {
        Some(Error::NoCertificatesPresented) => "it shows no certificate".to_owned(),
        Some(Error::InvalidCertificate(bad)) => match (bad, authorities) {
            (Bad::UnknownIssuer | Bad::BadSignature, Some(file)) => {
                format!("its certificate is signed by none of the authorities in {file}")
            }
            (bad, _) => format!("its certificate {}", flaw(bad)),
        },
        Some(Error::InvalidMessage(_)) => "it does not speak TLS".to_owned(),
        Some(Error::PeerIncompatible(_)) => "it does not speak TLS 1.3".to_owned(),
        Some(Error::NoApplicationProtocol) => "it does not speak HTTP/2".to_owned(),
        Some(Error::AlertReceived(alert)) => format!("it does not accept this server ({alert:?})"),
        Some(other) => other.to_string(),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "it went away in the handshake".to_owned(),
        None => error.to_string(),
    }
}

/// Of a server that was not accepted, or did not accept us.
pub(super) fn of_server(
    error: &io::Error,
    authorities: &PemFile,
    name: &str,
    own: Option<&Identity>,
) -> String {
    match tls(error) {
        Some(Error::InvalidCertificate(bad)) => match bad {
            Bad::UnknownIssuer | Bad::BadSignature => {
                format!("the server's certificate is signed by none of the authorities in {authorities}")
            }
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => format!(
                "the server's certificate is not for {name}: dial a name that it is for, or say it by --server-name"
            ),
            bad => format!("the server's certificate {}", flaw(bad)),
        },
        Some(Error::InvalidMessage(_)) => "the server does not speak TLS".to_owned(),
        Some(Error::PeerIncompatible(_)) => "the server does not speak TLS 1.3".to_owned(),
        Some(Error::AlertReceived(alert)) => refused(*alert, own),
        Some(other) => other.to_string(),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the server ended the handshake without saying why".to_owned()
        }
        None => error.to_string(),
    }
}

fn refused(alert: Alert, own: Option<&Identity>) -> String {
    let Some(own) = own else {
        return match alert {
            Alert::CertificateRequired => {
                "the server wants a certificate of this node: give --cert and --key".to_owned()
            }
            alert => format!("the server refused the handshake ({alert:?})"),
        };
    };
    let own = &own.certificate;
    match alert {
        Alert::CertificateExpired => format!("the server refused {own}: it has expired"),
        Alert::UnknownCA | Alert::DecryptError => {
            format!("the server refused {own}: it does not know the authority that signed it")
        }
        alert => format!("the server refused {own} ({alert:?})"),
    }
}

/// What is wrong with a certificate: the rest of a sentence about it.
fn flaw(bad: &Bad) -> String {
    match bad {
        Bad::Expired | Bad::ExpiredContext { .. } => "has expired".to_owned(),
        Bad::NotValidYet | Bad::NotValidYetContext { .. } => "is not valid yet".to_owned(),
        Bad::UnknownIssuer => "is signed by an unknown authority".to_owned(),
        Bad::BadEncoding => "cannot be read".to_owned(),
        Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. } => "is not for this use".to_owned(),
        bad => format!("is refused: {bad}"),
    }
}
