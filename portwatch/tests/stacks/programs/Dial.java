class Dial {
    public static void main(String[] args) throws Exception {
        new java.net.Socket("127.0.0.1", Integer.parseInt(args[0])).getInputStream().read();
    }
}
